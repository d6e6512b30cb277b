"""What groups have committed, asked over consumers of theirs that never join.

Not over librdkafka's admin client, which ends the whole process where the broker that it asks does not coordinate the group,
as one that has just come back does not yet: it looks for the coordinator of its own group, and has none (2.16, its issue
5040; a consumer has one). And where the answer comes after it has given up it reads what it has freed (its pull request 5397).
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from things_kit.brokers.kafka.errors import ERRORS, UNKNOWN, away, error_of, translated
from things_kit.brokers.kafka.options import Settings
from things_kit.brokers.kafka.parting import answered, part, parted
from things_kit.engine.driver import ConnectionLost

ANSWER: Final = 5.0
"""Seconds that the coordinator may take to be found and to answer."""

LOOK: Final = 1.0
"""Seconds of these after which it is seen whether the group is refused to us."""

AGAIN: Final = 0.05
"""Seconds before a coordinator is asked again that is none, or not yet."""

KEPT: Final = 1.0
"""Seconds for which a consumer waits for the next question: who drains a group asks again and again, and a gauge now and then."""


class GroupReader:
    """The one reference to a consumer of a group. It ends in the thread of whoever lets it go last, and never in the loop.

    Attributes:
        end_later: Ends it, unless it is asked again.
    """

    def __init__(self, settings: Settings, group: str) -> None:
        self._consumers: list[Any] = [settings.created(Consumer, settings.reader(group))]
        self.end_later: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Let it go. Blocks."""
        self._consumers.clear()

    def committed(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        """The places of the group; none if there is no such group. Blocks. Raises KafkaException."""
        consumers, ends = self._consumers[:], time.monotonic() + ANSWER
        try:
            while consumers:
                try:
                    found: list[TopicPartition] = consumers[0].committed(list(partitions), timeout=LOOK)
                except KafkaException as error:
                    if error_of(error).code() == KafkaError.GROUP_ID_NOT_FOUND:
                        return []
                    _raise_refusal(consumers[0].poll(0))
                    if time.monotonic() > ends or not _may_pass(error_of(error)):
                        raise
                    time.sleep(AGAIN)
                else:
                    return found
            raise away("the client was replaced, or closed")
        finally:
            consumers.clear()  # what is raised keeps this frame, and is not to keep the client


def _raise_refusal(event: Any) -> None:
    """Raise what a consumer has said, if it is that we may not use the group."""
    error = None if event is None else event.error()
    if error is not None and not _may_pass(error):
        raise KafkaException(error)


def _may_pass(error: KafkaError) -> bool:
    return isinstance(translated(error, ""), ConnectionLost)


class GroupReaders:
    """Those of the groups that were asked for a moment ago."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._readers: dict[str, GroupReader] = {}

    async def committed(self, group: str, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        """The places of a group; partitions without one are left out. Raises ConnectionLost, ConfigError."""
        if not partitions:
            return []
        if group not in self._readers:
            self._readers[group] = GroupReader(self._settings, group)
        reader, kept = self._readers[group], 0.0
        try:
            with ERRORS.during(f"asking for the places of the group {group!r}"):
                found = await answered(lambda: reader.committed(partitions), "places")
                kept = KEPT
                for each in found:
                    if each.error is not None and each.error.code() not in UNKNOWN:
                        raise KafkaException(each.error)
        finally:
            self._end_in(kept, group, reader)
        return [each for each in found if each.error is None and each.offset != OFFSET_INVALID]

    def _end_in(self, seconds: float, group: str, reader: GroupReader) -> None:
        """Have it end then, unless it is asked again until it does; one that did not answer ends at once."""
        if reader.end_later is not None:
            reader.end_later.cancel()
        if self._readers.get(group) is reader:
            reader.end_later = asyncio.get_running_loop().call_later(seconds, self._end, group, reader)

    def _end(self, group: str, reader: GroupReader) -> None:
        if self._readers.get(group) is reader:
            del self._readers[group]
        part(reader.end, "reader end")

    async def close(self) -> None:
        """End all consumers, in bounded time."""
        readers, self._readers = list(self._readers.values()), {}
        for reader in readers:
            if reader.end_later is not None:
                reader.end_later.cancel()
        await asyncio.gather(*(parted(reader.end, "reader close") for reader in readers))
