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
"""As many looks in a row must find a partition where it was before, with messages behind that."""


class Progress:
    """Compares the positions of a receiver with the ends of its partitions, and the topic with the one it began with.

    The engine's own watch sees when nothing arrives; this sees one partition that stands still among others.

    Attributes:
        gone: The topic is not the one of these positions any more: nothing may be committed.
    """

    def __init__(self, admin: Admin, topic: str, topic_id: str) -> None:
        self.gone = False
        self._admin = admin
        self._topic = topic
        self._topic_id = topic_id
        self._looks: dict[tuple[int, int], int] = {}

    async def look(self, partitions: Mapping[int, Offsets], *, busy: bool) -> str | None:
        """Why the receiver is to end; None if it gets on, or if that cannot be told. `busy`: what had come was never all taken."""
        before, self._looks = self._looks, {}
        try:
            topic = await self._admin.topic(self._topic)
            self.gone = topic is None or id_of(topic) != self._topic_id
            if self.gone:
                return f"the topic {self._topic!r} was removed{'' if topic is None else ', and made anew'}"
            for place, overdue in () if busy else (await self.overdue(partitions)).items():
                looks = before.get(place, -1) + 1
                if looks >= LOOKS:
                    return f"partition {place[0]} of {self._topic!r} has {overdue} messages, and none of them arrives"
                self._looks[place] = looks
        except (ConnectionLost, ConfigError) as error:
            log.debug("%s: progress cannot be told: %s", self._topic, error)
        return None

    async def overdue(self, partitions: Mapping[int, Offsets]) -> dict[tuple[int, int], int]:
        """How many messages lie behind the position in a partition, where there are any. Raises ConnectionLost."""
        positions = {number: offsets.end or 0 for number, offsets in partitions.items()}
        ends = await self._admin.ends(self._topic, positions)
        return {(n, positions[n]): end - positions[n] for n, end in ends.items() if end > positions[n]}
