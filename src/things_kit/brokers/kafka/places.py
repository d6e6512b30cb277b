"""The places of a member in its partitions: where it goes on, and what it commits. Of the receiving thread."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)  # fmt: skip

from things_kit.brokers.kafka.errors import error_of, translated
from things_kit.engine.offsets import LIMIT, Mark, Offsets

log = logging.getLogger("things_kit.kafka")

ANSWER: Final = 10.0
"""Seconds that the broker may take to answer a question of the receiver."""


class Beginning(NamedTuple):
    """Where a receiver begins in partitions of which its group has no place.

    Attributes:
        topic_id: The topic's id: one of the same name that is made later has another.
        anew: The topic took the place of one that this group had read: what is committed may be of that one.
        latest: Partitions below this number begin at their end. Those that are added later begin at their first message.
    """

    topic_id: str
    anew: bool = False
    latest: int = 0


class Places:
    """The offsets of a topic's partitions that a member has, and what of them is committed.

    Attributes:
        partitions: The offsets of each partition that it has now.
        committing: Whether a commit is under way; there is one at a time.
    """

    def __init__(self, topic: str, beginning: Beginning) -> None:
        self.partitions: dict[int, Offsets] = {}
        self.committing = False
        self._topic = topic
        self._beginning = beginning
        self._committed: dict[int, Mark] = {}
        self._metadata_limit = LIMIT

    @property
    def committed(self) -> dict[int, int]:
        """The offsets before which all is finished, by partition; of those of which anything was committed."""
        return {number: mark[0] for number, mark in list(self._committed.items())}

    @property
    def anew(self) -> bool:
        """Whether the topic took the place of one that was read before, and nothing of it was read yet."""
        return self._beginning.anew

    # --- partitions that come and go

    def begin(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Find where each goes on, and fix the start of a group that begins at the end.

        Called back by the client, which makes of a KafkaException from here something that no `except` catches: the bare
        error in it, which is no exception. So what is raised is ours: ConnectionLost, ConfigError.
        """
        try:
            return self._found(consumer, partitions)
        except KafkaException as error:
            raise translated(error_of(error), "asking where the group is") from error

    def _found(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        partitions = consumer.committed(partitions, timeout=ANSWER)
        for each in partitions:
            if each.error is not None:
                raise KafkaException(each.error)
        new, anew = [], self._beginning.anew
        for each in partitions:
            if each.offset >= 0 and not anew:
                self.partitions[each.partition] = Offsets.restored(each.offset, each.metadata)
                self._committed[each.partition] = (each.offset, each.metadata or "")
            elif anew or each.partition < self._beginning.latest:
                start, end = consumer.get_watermark_offsets(each, timeout=ANSWER)
                each.offset = start if anew else end
                self.partitions[each.partition] = Offsets(each.offset)
                new.append(TopicPartition(each.topic, each.partition, each.offset))
            else:
                each.offset = OFFSET_BEGINNING
                self.partitions[each.partition] = Offsets()
        self._beginning = self._beginning._replace(anew=False)
        if new:  # else a restart before the first commit would go on from somewhere else
            consumer.commit(offsets=new, asynchronous=False)
        return partitions

    def held(self, partitions: Iterable[TopicPartition]) -> dict[int, Offsets]:
        """Those of them that it has."""
        numbers = [each.partition for each in partitions if each.partition in self.partitions]
        return {number: self.partitions[number] for number in numbers}

    def remove(self, partitions: Iterable[int]) -> None:
        """They are others' now."""
        for partition in partitions:
            del self.partitions[partition]
            self._committed.pop(partition, None)

    # --- committing

    def commit(self, consumer: Consumer) -> bool:
        """Commit what has changed, without waiting for the answer; False if there was nothing.

        While the group rebalances by the classic protocol it waits: the broker answers one request of a connection
        after another, and JoinGroup only when all members have joined.
        """
        if self.committing:
            return True
        due = {
            number: mark
            for number, mark in self._marks(self.partitions)
            if self._committed.get(number) != mark
        }
        if due:
            self._committed.update(due)
            self.committing = True
            consumer.commit(offsets=self._as_native(due), asynchronous=True)
        return bool(due)

    def commit_leaving(self, consumer: Consumer, leaving: Mapping[int, Offsets]) -> None:
        """Commit all of these, and wait: of a commit under way nobody knows yet whether it is taken."""
        marks = dict(self._marks(leaving))
        if not marks:
            return
        try:
            consumer.commit(offsets=self._as_native(marks), asynchronous=False)
        except KafkaException as error:
            log.debug("%s: the commit before a rebalance failed: %s", self._topic, error)

    def on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """What became of a commit; what was not taken is committed again."""
        self.committing = False
        for each in partitions:
            trouble = each.error or error
            if trouble is None:
                continue
            log.debug("%s %d: the commit failed: %s", self._topic, each.partition, trouble)
            self._committed.pop(each.partition, None)
            if trouble.code() == KafkaError.OFFSET_METADATA_TOO_LARGE:
                self._metadata_limit = 0  # this broker takes less than Kafka's default

    def _marks(self, partitions: Mapping[int, Offsets]) -> Iterator[tuple[int, Mark]]:
        for number, offsets in partitions.items():
            mark = offsets.mark(self._metadata_limit)
            if mark is not None:
                yield number, mark

    def _as_native(self, marks: Mapping[int, Mark]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, number, *mark) for number, mark in marks.items()]
