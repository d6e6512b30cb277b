"""Whether what a topic has arrives: the last word on a client that says it is well."""

import logging
from collections.abc import Mapping
from typing import Final

from things_kit.brokers.kafka.admin import Admin, id_of
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.offsets import Offsets
from things_kit.messaging.errors import ConfigError

log = logging.getLogger("things_kit.kafka")

INTERVAL: Final = 7.0
"""Seconds between two looks."""

LOOKS: Final = 3
"""As many looks in a row must find a partition standing still that has messages."""


class Progress:
    """Compares the positions of a receiver with the ends of its partitions, and the topic with the one it began with.

    Attributes:
        interval: Seconds between two looks.
        gone: The topic is not the one of these positions any more: nothing may be committed.
    """

    def __init__(self, admin: Admin, topic: str, topic_id: str) -> None:
        self.interval = INTERVAL
        self.gone = False
        self._admin = admin
        self._topic = topic
        self._topic_id = topic_id
        self._before: dict[int, tuple[Offsets, int | None]] = {}
        self._still: dict[int, int] = {}

    async def look(self, partitions: Mapping[int, Offsets], *, busy: bool) -> str | None:
        """Why the receiver is to end; None if it gets on, or if that cannot be told. `busy`: what had come was never all taken."""
        try:
            topic = await self._admin.topic(self._topic)
            self.gone = topic is None or id_of(topic) != self._topic_id
            if self.gone:
                return f"the topic {self._topic!r} was removed{'' if topic is None else ', and made anew'}"
            return await self._standing_still(partitions, busy=busy)
        except (ConnectionLost, ConfigError) as error:
            log.debug("%s: progress cannot be told: %s", self._topic, error)
            self._still.clear()
            return None

    async def overdue(self, partitions: Mapping[int, Offsets]) -> dict[int, int]:
        """How many messages each partition has that were not received. Raises ConnectionLost."""
        positions = {number: offsets.end or 0 for number, offsets in partitions.items()}
        ends = await self._admin.ends(self._topic, positions)
        return {number: max(0, end - positions[number]) for number, end in ends.items()}

    async def _standing_still(self, partitions: Mapping[int, Offsets], *, busy: bool) -> str | None:
        before, self._before = self._before, {number: (each, each.end) for number, each in partitions.items()}
        same = {
            number: each for number, each in partitions.items() if before.get(number) == self._before[number]
        }
        if busy or not same:
            self._still.clear()
            return None
        overdue = await self.overdue(same)
        self._still = {number: self._still.get(number, 0) + 1 for number in same if overdue.get(number)}
        number = next((number for number, looks in self._still.items() if looks >= LOOKS), None)
        if number is None:
            return None
        return (
            f"partition {number} of {self._topic!r} has {overdue[number]} messages, and none of them arrives"
        )
