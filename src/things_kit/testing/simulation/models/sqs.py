"""The model of Amazon SQS behind SNS, with standard queues.

What the real one may do, and where that is written:

* Delivery is at least once and in any order: a message may come twice although it was deleted in time (Amazon SQS
  Developer Guide, "Standard queues", "At-least-once delivery").
* What is not deleted within the visibility timeout comes again, and ApproximateReceiveCount grows.
* A topic without subscriptions drops what is published to it.
* A delay is kept in whole seconds, and here for as long as one likes; our driver renews longer ones.
* What is for later is in the queues of the groups that there are at once, is visible by the whole second before its time or
  after fifteen minutes, and waits on with who receives it (docs/scheduling.md).
"""

from typing import Final

from things_kit.engine.driver import Capabilities
from things_kit.testing.simulation.models.queue import QueueGroup
from things_kit.testing.simulation.models.traits import Keeping, Traits

TRAITS: Final = Traits(
    name="sqs",
    capabilities=Capabilities(
        delay=True,
        delay_from=1.0,
        lease=30.0,
        attempts=True,
        targeted=True,
        suspects=True,
        counts_releases=True,
        scheduled_in_lag=True,
        max_batch=1000,
        max_message_bytes=252 * 1024,
    ),
    counts=True,
    counts_returns=True,
    listened=True,
    duplicates=True,
    unordered=True,
    later=True,
    keeping=Keeping(by="copies", longest=14 * 86_400.0),
)
GROUP: Final = QueueGroup
