"""What groups have committed, asked over consumers of theirs that never join.

Not over librdkafka's admin client, which ends the whole process where the broker that it asks does not coordinate the group,
as one that has just come back does not yet: it looks for the coordinator of its own group, and has none (2.16, its issue
5040; a consumer has one). And where the answer comes after it has given up it reads what it has freed (its pull request 5397).
"""

import asyncio
import time
from collections import OrderedDict
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

MOST: Final = 2
"""Groups whose consumers are kept for the next question; the one that was asked for longest ago goes first."""


class GroupReader:
    """The one reference to a consumer of a group. It ends in the thread of whoever lets it go last, and never in the loop."""

    def __init__(self, settings: Settings, group: str) -> None:
        self._consumers: list[Any] = [settings.created(Consumer, settings.reader(group))]

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
    """Those of the groups that were asked for last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._readers: OrderedDict[str, GroupReader] = OrderedDict()

    async def committed(self, group: str, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        """The places of a group; partitions without one are left out. Raises ConnectionLost, ConfigError."""
        if not partitions:
            return []
        reader = self._reader(group)
        try:
            with ERRORS.during(f"asking for the places of the group {group!r}"):
                found = await answered(lambda: reader.committed(partitions), "places")
                for each in found:
                    if each.error is not None and each.error.code() not in UNKNOWN:
                        raise KafkaException(each.error)
        except ConnectionLost:
            if self._readers.get(group) is reader:
                del self._readers[group]
            part(reader.end, "reader end")
            raise
        return [each for each in found if each.error is None and each.offset != OFFSET_INVALID]

    def _reader(self, group: str) -> GroupReader:
        if group not in self._readers:
            self._readers[group] = GroupReader(self._settings, group)
            if len(self._readers) > MOST:
                part(self._readers.popitem(last=False)[1].end, "reader end")
        self._readers.move_to_end(group)
        return self._readers[group]

    async def close(self) -> None:
        """End all consumers, in bounded time."""
        readers, self._readers = list(self._readers.values()), OrderedDict()
        await asyncio.gather(*(parted(reader.end, "reader close") for reader in readers))
