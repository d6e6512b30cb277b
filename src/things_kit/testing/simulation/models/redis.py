"""The model of Redis Streams with a consumer group.

What the real one may do, and where that is written:

* An entry stays in the pending list of its consumer until XACK; another may claim it once it was idle for long enough,
  and the count of deliveries grows (Redis documentation, XREADGROUP, XAUTOCLAIM, XPENDING).
* There is no order across the consumers of a group, and none through a claim.
* Our driver keeps delayed retries in the broker. A stream keeps its entries until they are trimmed.
"""

from typing import Final

from things_kit.engine.driver import Capabilities
from things_kit.testing.simulation.models.queue import QueueGroup
from things_kit.testing.simulation.models.traits import Keeping, Traits

TRAITS: Final = Traits(
    name="redis",
    capabilities=Capabilities(
        delay=True,
        lease=30.0,
        retained=True,
        attempts=True,
        suspects=True,
        schedule_ids=True,
        schedules=True,
        max_message_bytes=16 * 1024 * 1024,
    ),
    counts=True,
    keeping=Keeping(punctual=True),
)
GROUP: Final = QueueGroup
