"""Names for what a bridge publishes, which are the same after it was killed: of the source, the topic and the position."""

import hashlib
from typing import Final

from things_kit.engine.broker import Broker
from things_kit.engine.publishes import Identified
from things_kit.messaging.message import Message

REMEMBERED: Final = 10_000
"""The most messages whose name was changed that are remembered; of what was forgotten a repeat may be dropped."""


class PublishNames:
    """By its name a target that deduplicates knows a publish that it has confirmed to a bridge which was killed then."""

    def __init__(self, source: Broker) -> None:
        self._transmission = source.transmission
        self._source: str | None = None
        self._changed: dict[tuple[str, int | None, int | None], None] = {}

    async def open(self) -> None:
        """Ask the source who it is. Raises BrokerUnavailable."""
        driver = self._transmission.driver
        if isinstance(driver, Identified):
            self._source = await self._transmission.patiently(driver.source)

    def of(self, message: Message) -> str | None:
        """The name for a message of the source; None where it has none that would last.

        Its id is part of it, so that another one in its place is not taken for it: topics are removed and made anew.
        """
        if self._source is None or message.offset is None or _place(message) in self._changed:
            return None
        what = "\0".join((self._source, *map(str, _place(message)), message.id or ""))
        return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()

    def change(self, message: Message) -> None:
        """It goes out of order if it was confirmed already: it is to be kept when it comes again, behind what it overtook."""
        self._changed[_place(message)] = None
        while len(self._changed) > REMEMBERED:
            del self._changed[next(iter(self._changed))]


def _place(message: Message) -> tuple[str, int | None, int | None]:
    return message.topic, message.partition, message.offset
