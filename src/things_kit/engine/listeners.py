"""Who would get a message, asked of brokers that drop what nobody does."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Set
from typing import Final, TypeAlias

from things_kit.messaging.errors import NobodyListens

log = logging.getLogger("things_kit.broker")

ANEW: Final = 60.0
"""Seconds after which a broker is asked again whether somebody still listens."""

FIRST_WORD: Final = 1.5
"""Seconds after which it is said that messages wait for somebody to listen."""

NEXT_WORD: Final = 10.0
"""Seconds between two such words of one topic."""

HasListeners: TypeAlias = Callable[[str], Awaitable[bool | None]]
"""As `Listened.has_listeners`."""


def nobody_listens(topic: str) -> NobodyListens:
    """The error for a message that no group would get."""
    return NobodyListens(
        f"no group has the topic {topic!r}, so the broker would drop the message: declare one, "
        f"`broker.declare({topic!r}, groups=[...])` or `things-kit declare URL {topic} --group NAME`, or say ?unrouted=drop"
    )


class Listeners:
    """Remembers for a minute that somebody listens to a topic; that nobody does is asked again each time."""

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self._good_until: dict[str, float] = {}
        self._warned = False

    def forget(self, topic: str) -> None:
        """A topic or a group of it was removed."""
        self._good_until.pop(topic, None)

    async def missing(self, topic: str, has_listeners: HasListeners) -> NobodyListens | None:
        """The error if nobody listens to the topic; None where somebody does, or the broker may not be asked."""
        now = asyncio.get_running_loop().time()
        if self._good_until.get(topic, now) > now:
            return None
        listening = await has_listeners(topic)
        if listening is False:
            self.forget(topic)
            return nobody_listens(topic)
        if listening is None and not self._warned:
            self._warned = True
            log.warning(
                "%s: we are not allowed to ask who is subscribed to %r; a message that no group has is lost unseen",
                self._broker, topic,
            )  # fmt: skip
        self._good_until[topic] = now + ANEW
        return None


class Unheard:
    """Says of which topics messages wait for somebody to listen: nothing else would tell why they do."""

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self._next: dict[str, float] = {}

    def tell(self, topics: Set[str]) -> None:
        """Say so, if they have waited for a while and it was not said just now."""
        now = asyncio.get_running_loop().time()
        for topic in sorted(topics):
            if self._next.setdefault(topic, now + FIRST_WORD) <= now:
                self._next[topic] = now + NEXT_WORD
                log.warning(
                    "%s: no group has the topic %r: what is to be published there waits until somebody declares one",
                    self._broker,
                    topic,
                )

    def forget(self, topics: Set[str]) -> None:
        """They have a listener, or nothing waits for one any more."""
        for topic in topics:
            self._next.pop(topic, None)
