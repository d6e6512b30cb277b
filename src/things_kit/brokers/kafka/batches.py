"""How much goes to the broker at once: it refuses a whole batch for being larger than the topic's `max.message.bytes`.

So a batch must not be larger than that. Then a message that is too large is in a batch of its own, and nothing else is
refused with it. librdkafka has one size for all topics of a producer: topics that take less have another producer.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

LARGEST: Final = 1_000_000
"""Bytes of a batch (`batch.size`), which topics take unless they were told otherwise."""

FRAMING: Final = 100
"""Bytes of a batch beside its messages."""

ALONE: Final = 1
"""The size with which each message is a batch of its own."""

Ask = Callable[[Iterable[str]], Awaitable[Mapping[str, int | None]]]
"""What `max.message.bytes` of these topics is; None where we may not know. Those that are missing are left out."""


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
        """Have sizes for these. Raises ConnectionLost."""
        unknown = topics - self._known
        if not unknown:
            return
        for topic, largest in (await self._ask(unknown)).items():
            self._known.add(topic)
            if largest is not None and largest - FRAMING < LARGEST:
                self.smaller[topic] = _size(largest)

    async def shrunk(self, topics: set[str]) -> set[str]:
        """Those of the topics that take less than we thought: what was refused there may have been a batch.

        Raises:
            ConnectionLost: The broker is away.
        """
        asked = await self._ask(topics)
        sizes = {topic: ALONE if largest is None else _size(largest) for topic, largest in asked.items()}
        less = {topic: size for topic, size in sizes.items() if size < self.smaller.get(topic, LARGEST)}
        self.smaller |= less
        return set(less)

    def forget(self, topic: str) -> None:
        """It was removed; one of the same name may take more."""
        self._known.discard(topic)
        self.smaller.pop(topic, None)


def _size(largest: int) -> int:
    return min(LARGEST, 1 << max(ALONE, largest - FRAMING).bit_length() - 1)
