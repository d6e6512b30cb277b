"""The topic in which messages wait until they are due: a partition for each wait, and the member that carries on from it."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from confluent_kafka import TopicPartition

from things_kit.brokers.kafka.receiver import KafkaReceiver
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.offsets import Offsets
from things_kit.engine.wait_topics import WAITS
from things_kit.messaging.errors import ConfigError

log = logging.getLogger("things_kit.kafka")

SETTINGS: Final[Mapping[str, str]] = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "segment.bytes": str(50 * 1024 * 1024),
}
"""Of that topic: what waits is kept until it was carried on, however long nobody does, and then deleted by `TRIM`."""

TRIM: Final = 30.0
"""Seconds between two deletions of what was carried on."""


class WaitReceiver(KafkaReceiver):
    """Receives each partition up to a bound of its own: in one message may wait for a day, in another for a second."""

    _trimming: asyncio.Task[None] | None = None

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._share = max(1, self._subscription.max_in_flight // len(WAITS))
        self._full: set[int] = set()  # of the thread

    # --- on the loop

    async def join(self, within: float) -> None:
        """See `KafkaReceiver.join`."""
        await super().join(within)
        self._trimming = asyncio.create_task(self._trim(), name=f"{self.thread.name} trim")

    def abandon(self) -> None:
        """Have the thread close by itself."""
        super().abandon()
        if self._trimming is not None:
            self._trimming.cancel()

    async def _trim(self) -> None:
        """Delete what was carried on, as nothing else does."""
        trimmed: dict[int, int] = {}
        while True:
            await asyncio.sleep(TRIM)
            done = {n: at for n, at in self._places.committed.items() if at > trimmed.get(n, 0)}
            try:
                await self._admin.trim(self._topic, done)
            except ConfigError as error:
                log.warning("what was carried on stays in %r, which grows: %s", self._topic, error)
                return
            except ConnectionLost as error:
                log.debug("%s: not trimmed: %s", self._topic, error)
            else:
                trimmed |= done

    def _expected(self) -> dict[int, Offsets]:
        full = frozenset(self._full)
        return {n: offsets for n, offsets in super()._expected().items() if n not in full}

    # --- in the thread

    def _room(self) -> int:
        room = super()._room()
        partitions = dict(self._places.partitions)
        if not partitions:
            return room
        held = {number: len(offsets.unfinished) for number, offsets in partitions.items()}
        full = {
            n for n, many in held.items() if many >= (self._share // 2 if n in self._full else self._share)
        }
        if full != self._full:
            before, self._full = self._full, full
            self._consumer.pause(self._native(full - before))
            if not self._paused:
                self._consumer.resume(self._native((before - full) & partitions.keys()))
        if len(full) == len(held):
            return 0
        return min(room, *(self._share - many for number, many in held.items() if number not in full))

    def _pause(self, pause: bool) -> None:
        super()._pause(pause)
        if not pause:
            self._consumer.pause(self._native(self._full & self._places.partitions.keys()))

    def _native(self, numbers: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, number) for number in sorted(numbers)]
