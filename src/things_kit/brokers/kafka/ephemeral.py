"""Receiving without a group: all partitions, from now on, or from where a receiver was that is no more."""

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition

from things_kit.brokers.kafka.places import ANSWER
from things_kit.brokers.kafka.receiver import KafkaReceiver
from things_kit.engine.offsets import Offsets

log = logging.getLogger("things_kit.kafka")

REFRESH: Final = 5.0
"""Seconds between two looks for partitions that were added to the topic."""

Left: TypeAlias = dict[tuple[str, str], Mapping[int, Offsets]]
"""The offsets of receivers by topic and group, for those that come after them: no broker keeps these."""


class EphemeralReceiver(KafkaReceiver):
    """Reads all partitions from now on, as nobody's member, and leaves no trace at the broker.

    One that takes the place of another, which lost its connection, goes on where that was. In a topic that was made anew it
    begins at the first message.
    """

    member = False

    _next_refresh = 0.0

    def __init__(self, *parts: Any, left: Left) -> None:
        super().__init__(*parts)
        self._left = left
        self._key = (self._subscription.topic, self._subscription.group)
        if self._places.anew:
            left[self._key] = {}
        self._former = left.get(self._key)

    # --- on the loop

    async def join(self, within: float) -> None:
        """See `KafkaReceiver.join`."""
        await super().join(within)
        self._left[self._key] = self._places.partitions

    async def quiesce(self) -> None:
        """See `ReceivingThread.quiesce`. Its consumer stops, so nobody comes after it."""
        self._left.pop(self._key, None)
        await super().quiesce()

    # --- in the thread

    def _begin(self) -> None:
        if self._former is not None:
            self._go_on(dict(self._former))
        self._add(at_end=self._former is None and not self._subscription.past)
        self._tell(self._has_joined)

    def _go_on(self, former: Mapping[int, Offsets]) -> None:
        for number, offsets in former.items():
            mark = offsets.mark()
            self._places.partitions[number] = Offsets() if mark is None else Offsets.restored(*mark)
        self._assign(former)

    def _turn(self) -> None:
        if time.monotonic() >= self._next_refresh:
            try:
                self._add(at_end=False)
            except KafkaException as error:  # the broker is away: librdkafka comes back to what we have
                log.debug("%s: looking for new partitions failed: %s", self._topic, error)
        super()._turn()

    def _add(self, *, at_end: bool) -> None:
        """Take what is new of the topic: all of a partition that came to be after we began."""
        self._next_refresh = time.monotonic() + REFRESH
        consumer, partitions = self._consumer, self._places.partitions
        known = consumer.list_topics(self._topic, timeout=ANSWER).topics[self._topic]
        if known.error is not None:
            raise KafkaException(known.error)
        new = [number for number in known.partitions if number not in partitions]
        for number in new:
            end = None
            if at_end:
                asked = TopicPartition(self._topic, number)
                end = consumer.get_watermark_offsets(asked, timeout=ANSWER)[1]
            partitions[number] = Offsets(end)
        self._assign(new)

    def _assign(self, numbers: Iterable[int]) -> None:
        """Read these from where their offsets end."""
        ends = ((number, self._places.partitions[number].end) for number in numbers)
        native = [
            TopicPartition(self._topic, number, OFFSET_BEGINNING if end is None else end)
            for number, end in ends
        ]
        if native:
            self._consumer.incremental_assign(native)
            if self._paused:
                self._consumer.pause(native)

    def _commit(self) -> bool:
        """There is no group to commit for."""
        return False
