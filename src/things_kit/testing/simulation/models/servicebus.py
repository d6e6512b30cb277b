"""The model of Azure Service Bus without sessions.

What the real one may do, and where that is written:

* A message is locked for its receiver; without renewal the lock ends, the message comes again to anybody, and
  DeliveryCount grows (Service Bus documentation, "Message transfers, locks, and settlement").
* Competing receivers of a subscription have no order among each other.
* A delay is a scheduled copy, enqueued when it is due, about once a second.
* A topic without subscriptions drops what is published to it.
"""

from typing import Final

from things_kit.engine.driver import Capabilities
from things_kit.testing.simulation.models.queue import QueueGroup
from things_kit.testing.simulation.models.traits import Keeping, Traits

TRAITS: Final = Traits(
    name="servicebus",
    capabilities=Capabilities(
        delay_from=1.0,
        lease=30.0,
        attempts=True,
        suspects=True,
        targeted=True,
        scheduled_in_lag=True,
        max_message_bytes=255_000,
    ),
    pushed=True,
    counts=True,
    listened=True,
    later=True,
    keeping=Keeping(late=1.0),
)
GROUP: Final = QueueGroup
