"""The model of NATS JetStream with a durable pull consumer.

What the real one may do, and where that is written:

* A message that is not acknowledged within `ack_wait` is delivered again to anybody, and so is one whose
  acknowledgement was lost; the server counts deliveries (NATS documentation, "Consumers", "AckWait", "MaxDeliver").
* What was given back, or was not acknowledged in time, is handed out before what is new, in the order in which it was
  given back, whatever its place in the stream was (docs/brokers/nats.md). Our driver sorts what it gives back; this model does not.
* `nak` with a delay puts one message off; those behind it go on. There is no order across the processes of a group.
* A server that was killed has forgotten what it had handed out and not written yet: it comes at once, with the same count
  (recorded, tests/testing/simulation/recorded).
* A stream keeps its messages whatever was acknowledged.
"""

from typing import Final

from things_kit.engine.driver import Capabilities
from things_kit.testing.simulation.models.queue import QueueGroup
from things_kit.testing.simulation.models.traits import Traits

TRAITS: Final = Traits(
    name="nats",
    capabilities=Capabilities(
        delay=True,
        lease=30.0,
        retained=True,
        attempts=True,
        suspects=True,
        counts_releases=True,
        max_message_bytes=1024 * 1024,
    ),
    counts=True,
    returned_first=True,
    forgets=True,
)
GROUP: Final = QueueGroup
