"""The model of Apache Kafka.

What the real one may do, and where that is written:

* A group's position is a committed offset for each partition; whatever comes after it is delivered again to the next
  owner (Kafka documentation, "Consumer Position"). Our driver commits a little later than it acknowledges.
* A member that dies keeps its partitions until `session.timeout.ms`; one that lives hands them over in a cooperative
  rebalance (KIP-429).
* Order holds within a partition, not beyond. A broker that was lost while it answered may have the message or not.
* It counts no deliveries, knows no delay, and keeps what was acknowledged. What is for later waits in a topic of the
  engine's, which running consumers carry on.
"""

import math
from typing import Final

from things_kit.engine.driver import Capabilities
from things_kit.testing.simulation.models.log import LogGroup
from things_kit.testing.simulation.models.traits import Traits

TRAITS: Final = Traits(
    name="kafka",
    capabilities=Capabilities(
        retained=True,
        partitions=True,
        lasting_inbox=False,
        carried=math.inf,
        max_batch=50_000,
        max_message_bytes=1_000_000,
    ),
    impossible=frozenset({"lease_expiry"}),
    partitions=4,
)
GROUP: Final = LogGroup
