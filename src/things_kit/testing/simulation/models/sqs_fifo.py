"""The model of Amazon SQS behind SNS, with FIFO topics and queues: every topic is one.

What the real one may do, and where that is written:

* Messages of one group id are handed out in order, and none while one of them is in flight (Amazon SQS Developer Guide,
  "FIFO queues", "Message group ID"). One without a key has a group of its own.
* What is not deleted within the visibility timeout comes again, before what follows it in its group.
* It delays no single message, so that nothing is for later.
* Deduplication holds for five minutes and one id of a publish; this model is less kind, and has none.
"""

from typing import Final

import msgspec

from things_kit.testing.simulation.models import sqs
from things_kit.testing.simulation.models.queue import QueueGroup

TRAITS: Final = msgspec.structs.replace(
    sqs.TRAITS, name="sqs-fifo", keyed=True, waits=True, duplicates=False, unordered=False, keeping=None
)
GROUP: Final = QueueGroup
