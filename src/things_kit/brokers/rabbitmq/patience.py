"""How long the broker waits for an acknowledgement, and how it is asked to wait for ever.

| RabbitMQ | its setting `consumer_timeout` holds for | it can be lifted by |
|---|---|---|
| before 3.12 | all queues | nothing: what is held for long is renewed |
| 3.12 to 4.2 | all queues | an argument of the queue |
| from 4.3 on | quorum queues | an argument of the consumer |

Only an exclusive queue, which is made anew each time, is declared with that argument: 4.3 compares it with that of a queue that
exists, so a group's queue would be refused once its server is renewed. Groups from 3.12 to 4.2 renew what they hold.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

FOREVER: Final[Mapping[str, int]] = {"x-consumer-timeout": 2**31 - 1}
"""Milliseconds, no more than the broker's timers take: 24 days."""

BY_QUEUE: Final = (3, 12)
BY_CONSUMER: Final = (4, 3)


class Patience(msgspec.Struct, frozen=True):
    """What a server is asked for so that handlers may take their time.

    Attributes:
        version: The server's; empty if it does not say.
        ephemeral: Of a receiver with an exclusive queue.
        kind: The type of the queue; None where it is not ours and so not known.
    """

    version: tuple[int, ...]
    ephemeral: bool
    kind: object

    @property
    def renews(self) -> bool:
        """Whether what is held for long has to be renewed."""
        return self.version < (BY_QUEUE if self.ephemeral else BY_CONSUMER)

    @property
    def of_queue(self) -> Mapping[str, int]:
        """Arguments of an exclusive queue."""
        return FOREVER if self.ephemeral and BY_QUEUE <= self.version < BY_CONSUMER else {}

    @property
    def of_consumer(self) -> Mapping[str, int]:
        """Arguments of the consumer. A queue that is no quorum queue refuses them: of an unknown one it is tried."""
        asks = not self.ephemeral and self.version >= BY_CONSUMER and self.kind in {"quorum", None}
        return FOREVER if asks else {}


def server_version(properties: Mapping[str, Any]) -> tuple[int, ...]:
    """Major and minor version of a RabbitMQ, by what it says of itself; empty for what is none, or hides it."""
    numbers = str(properties.get("version", "")).split(".")[:2]
    if properties.get("product") != "RabbitMQ" or not all(number.isdigit() for number in numbers):
        return ()
    return tuple(map(int, numbers))
