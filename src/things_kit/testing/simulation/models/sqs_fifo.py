"""The model of Amazon SQS behind SNS, with FIFO topics and queues: every topic is one.

What the real one may do, and where that is written:

* Messages of one group id are handed out in order, and none while one of them is in flight (Amazon SQS Developer Guide,
  "FIFO queues", "Message group ID"). One without a key has a group of its own.
* What is not deleted within the visibility timeout comes again, before what follows it in its group.
* Deduplication holds for five minutes and one id of a publish; this model is less kind, and has none.
"""

from typing import Final

from things_kit.testing.simulation.models.queue import QueueGroup
from things_kit.testing.simulation.models.server import Traits
from things_kit.testing.simulation.models.sqs import CAPABILITIES

TRAITS: Final = Traits(
    name="sqs-fifo",
    capabilities=CAPABILITIES,
    counts=True,
    listened=True,
    keyed=True,
    waits=True,
    later=True,
)
GROUP: Final = QueueGroup
