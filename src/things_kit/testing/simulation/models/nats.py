"""The model of NATS JetStream with a durable pull consumer.

What the real one may do, and where that is written:

* A message that is not acknowledged within `ack_wait` is delivered again to anybody, and so is one whose
  acknowledgement was lost; the server counts deliveries (NATS documentation, "Consumers", "AckWait", "MaxDeliver").
* What was given back, or was not acknowledged in time, is handed out before what is new, in the order in which it was
  given back, whatever its place in the stream was (docs/brokers/nats.md). Our driver sorts what it gives back; this model does
  so only for a receiver that closes, and not for what the engine gives back.
* `nak` with a delay puts one message off; those behind it go on. There is no order across the processes of a group.
* A server that was killed has forgotten what it had handed out and not written yet: it comes at once, with the same count
  (recorded, tests/testing/simulation/recorded).
* A stream keeps its messages whatever was acknowledged, and, from 2.12 on, what is for later. That comes up to a quarter of
  a second late, and for as long before its time it can be neither replaced nor cancelled (docs/scheduling.md).
"""

import math
from typing import Final

from things_kit.engine.driver import Capabilities
from things_kit.testing.simulation.models.queue import QueueGroup
from things_kit.testing.simulation.models.traits import Keeping, Traits

TRAITS: Final = Traits(
    name="nats",
    capabilities=Capabilities(
        delay=True,
        lease=10.0,
        retained=True,
        attempts=True,
        suspects=True,
        counts_releases=True,
        lasting_inbox=False,
        schedule_ids=True,
        schedules=True,
        carried=math.inf,
        max_message_bytes=1_045_504,
    ),
    counts=True,
    counts_returns=True,
    returned_first=True,
    forgets=True,
    keeping=Keeping(late=0.25, margin=0.25, longest=200 * 365 * 86_400.0),
)
GROUP: Final = QueueGroup
