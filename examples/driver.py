"""A driver, whole: a broker in dictionaries of this process, which can do nothing but keep messages and hand them out.

The engine adds order, retries, delays, dead letters and all else. See docs/drivers.md. The URL is `stone://NAME`.
"""

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Final, Self

import msgspec

from things_kit import ConfigError, Message
from things_kit.engine.driver import (
    Capabilities,
    ConnectionLost,
    Delivery,
    Fetching,
    Release,
    Subscription,
    UnknownTopic,
)
from things_kit.engine.url import BrokerURL


class StoneOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may stand behind the `?` of the URL."""

    max_message_bytes: int = 1024 * 1024


class Group:
    """What a group is yet to get, by offset, in order; and what its receivers hold."""

    def __init__(self, topic: "Topic", beginning: int) -> None:
        self.waiting = dict(islice(enumerate(topic.log), beginning, None))
        self.held: dict[int, Message] = {}
        self.removed = False

    def give_back(self, offsets: Sequence[int]) -> None:
        """What goes back takes its old place."""
        back = {offset: self.held.pop(offset) for offset in offsets if offset in self.held}
        self.waiting = dict(sorted((self.waiting | back).items()))


class Topic:
    """All that was ever published, and its groups."""

    def __init__(self) -> None:
        self.log: list[Message] = []
        self.groups: dict[str, Group] = {}
        self.changed = asyncio.Event()

    def change(self) -> None:
        """Wake all who wait for something to come."""
        self.changed.set()
        self.changed = asyncio.Event()

    def append(self, message: Message) -> None:
        """Keep a message, and let every group have it."""
        offset = len(self.log)
        self.log.append(message.replace(offset=offset))
        for group in self.groups.values():
            group.waiting[offset] = self.log[offset]

    def remove(self, name: str) -> None:
        """Forget a group."""
        if (group := self.groups.pop(name, None)) is not None:
            group.removed = True
            self.change()


TOPICS: Final[dict[str, dict[str, Topic]]] = {}
"""The topics under each name, for all drivers of this process."""


class StoneDriver:
    """What `things_kit.engine.driver.Driver` asks for."""

    def __init__(self, topics: dict[str, Topic], options: StoneOptions) -> None:
        self.capabilities = Capabilities(retained=True, max_message_bytes=options.max_message_bytes)
        self._topics = topics

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver for `stone://NAME`."""
        if len(url.hosts) != 1 or url.path.strip("/") or url.username:
            raise ConfigError(f"{url.display}: expected stone://NAME")
        return cls(TOPICS.setdefault(url.hosts[0], {}), url.options(StoneOptions))

    async def open(self) -> None:
        """There is nothing to connect with."""

    async def close(self) -> None:
        """There is nothing to let go of."""

    async def ping(self) -> None:
        """It is well."""

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create what is missing."""
        target = self._topics.setdefault(topic, Topic())
        for name in groups:
            target.groups.setdefault(name, Group(target, 0))

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Forget the topic, or one group of it."""
        if (target := self._topics.get(topic)) is None:
            return
        for name in [*target.groups] if group is None else [group]:
            target.remove(name)
        if group is None:
            del self._topics[topic]

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Keep each message whose topic there is."""
        results: list[Exception | None] = []
        for message in messages:
            topic = self._topics.get(message.topic)
            if topic is not None:
                topic.append(message)
            results.append(UnknownTopic(message.topic) if topic is None else None)
        for name in {message.topic for message in messages} & self._topics.keys():
            self._topics[name].change()
        return results

    async def subscribe(self, subscription: Subscription) -> Fetching:
        """Join a group."""
        topic = self._topics.get(subscription.topic)
        missing = topic is None or not (subscription.ephemeral or subscription.group in topic.groups)
        if missing and not subscription.create:
            raise ConfigError(
                f"there is no group {subscription.group!r} of {subscription.topic!r}: declare it"
            )
        if topic is None:
            topic = self._topics.setdefault(subscription.topic, Topic())
        latest = subscription.start == "latest" and not subscription.past
        beginning = len(topic.log) if latest else 0
        topic.groups.setdefault(subscription.group, Group(topic, beginning))
        return StoneReceiver(topic, subscription)

    async def lag(self, topic: str, group: str) -> int | None:
        """What the group has not acknowledged; of one that is not there, all."""
        if (target := self._topics.get(topic)) is None:
            return 0
        found = target.groups.get(group)
        return len(target.log) if found is None else len(found.waiting) + len(found.held)


class StoneReceiver:
    """What `things_kit.engine.driver.Fetching` asks for. A delivery's token is its offset."""

    def __init__(self, topic: Topic, subscription: Subscription) -> None:
        self._topic = topic
        self._subscription = subscription
        self._group = topic.groups[subscription.group]
        self._mine: set[int] = set()

    async def fetch(self, limit: int, wait: float) -> None:
        """Hand out what waits, or wait for it."""
        self._check()
        if not self._group.waiting and wait:
            try:
                async with asyncio.timeout(wait):
                    await self._topic.changed.wait()
            except TimeoutError:
                return
            self._check()
        taken = dict(islice(self._group.waiting.items(), limit))
        for offset in taken:
            self._group.held[offset] = self._group.waiting.pop(offset)
        self._mine |= taken.keys()
        self._subscription.inbox.put([Delivery(message, offset) for offset, message in taken.items()])

    async def quiesce(self) -> None:
        """Nothing comes but by `fetch`."""

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Forget what was acknowledged, and let others have what was released."""
        self._check()
        back = [release.delivery.token for release in released]
        for delivery in acknowledged:
            self._group.held.pop(delivery.token, None)
        self._mine.difference_update(back, (delivery.token for delivery in acknowledged))
        self._group.give_back(back)
        if back:
            self._topic.change()

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """There are no leases."""

    async def overdue(self) -> int | None:
        """What waits for whoever asks."""
        return len(self._group.waiting)

    async def close(self) -> None:
        """Give back what is held; an ephemeral group ends."""
        self._group.give_back([*self._mine])
        if self._subscription.ephemeral:
            self._topic.remove(self._subscription.group)
        self._topic.change()

    def _check(self) -> None:
        if self._group.removed:
            raise ConnectionLost(f"the group {self._subscription.group!r} was removed")
