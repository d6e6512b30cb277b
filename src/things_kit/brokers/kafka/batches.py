"""How much goes to the broker at once: it refuses a whole batch for being larger than the topic's `max.message.bytes`.

So a batch must not be larger than that. Then a message that is too large is in a batch of its own, and nothing else is
refused with it. librdkafka has one size for all topics of a producer: topics that take less have another producer.
"""

from collections.abc import Awaitable, Callable
from typing import Final

LARGEST: Final = 1_000_000
"""Bytes of a batch (`batch.size`), which topics take unless they were told otherwise."""

FRAMING: Final = 100
"""Bytes of a batch beside its messages."""

ALONE: Final = 1
"""The size with which each message is a batch of its own."""

Ask = Callable[[str], Awaitable[int | None]]
"""What `max.message.bytes` of a topic is; None where we may not know. Raises ConnectionLost."""


class BatchSizes:
    """The sizes of batches by topic, as the broker says when the first message goes there.

    Attributes:
        smaller: Those of the topics that take less than `LARGEST`; powers of two, so that there are few of them.
    """

    def __init__(self, ask: Ask) -> None:
        self.smaller: dict[str, int] = {}
        self._ask = ask
        self._known: set[str] = set()

    async def learn(self, topics: set[str]) -> None:
        """Have sizes for these."""
        for topic in topics - self._known:
            await self._shrink(topic, LARGEST)
            self._known.add(topic)

    async def shrunk(self, topics: set[str]) -> set[str]:
        """Those of the topics that take less than we thought: what was refused there may have been a batch."""
        return {topic for topic in topics if await self._shrink(topic, ALONE)}

    def forget(self, topic: str) -> None:
        """It was removed, or is created: one of the same name may take more."""
        self._known.discard(topic)
        self.smaller.pop(topic, None)

    async def _shrink(self, topic: str, otherwise: int) -> bool:
        largest = await self._ask(topic)
        size = otherwise if largest is None else max(ALONE, largest - FRAMING)
        if size < LARGEST:
            size = 1 << size.bit_length() - 1
        less = size < self.smaller.get(topic, LARGEST)
        if less:
            self.smaller[topic] = size
        return less
