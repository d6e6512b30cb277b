"""Receiving without a group: all partitions, from now on."""

import logging
import time
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition

from things_kit.brokers.kafka.places import ANSWER
from things_kit.brokers.kafka.receiver import KafkaReceiver
from things_kit.engine.offsets import Offsets

log = logging.getLogger("things_kit.kafka")

REFRESH: Final = 5.0
"""Seconds between two looks for partitions that were added to the topic."""


class EphemeralReceiver(KafkaReceiver):
    """Reads all partitions from now on, as nobody's member, and leaves no trace at the broker."""

    member = False

    _next_refresh = 0.0

    def _begin(self) -> None:
        self._add(at_end=not self._subscription.past)
        self._tell(self._has_joined)

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
        new = [
            TopicPartition(self._topic, each, OFFSET_BEGINNING)
            for each in known.partitions
            if each not in partitions
        ]
        for each in new:
            if at_end:
                each.offset = consumer.get_watermark_offsets(each, timeout=ANSWER)[1]
            partitions[each.partition] = Offsets(each.offset if at_end else None)
        if new:
            consumer.incremental_assign(new)
            if self._paused:
                consumer.pause(new)

    def _commit(self) -> bool:
        """There is no group to commit for."""
        return False
