"""Topics and groups in dictionaries."""

import asyncio
import heapq
from collections.abc import Mapping, Sequence
from typing import Final, Self

from things_kit.brokers.memory.group import Group
from things_kit.brokers.memory.options import MemoryOptions
from things_kit.brokers.memory.receiver import MemoryReceiver
from things_kit.brokers.memory.topic import Topic
from things_kit.engine.clock import steady
from things_kit.engine.driver import Capabilities, Scheduled, Subscription, UnknownTopic
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message

_named: Final[dict[str, dict[str, Topic]]] = {}


class MemoryDriver:
    """Topics and groups in dictionaries; every operation is done when its call returns."""

    def __init__(self, topics: "dict[str, Topic]", options: MemoryOptions) -> None:
        self.capabilities = Capabilities(
            delay=True,
            lanes=True,
            retained=True,
            attempts=True,
            targeted=True,
            schedule_ids=True,
            schedules=True,
            max_message_bytes=options.max_message_bytes,
        )
        self._topics = topics
        self._retain = options.retain

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver for `memory://` or `memory://name`."""
        if url.path.strip("/") or len(url.hosts) > 1 or url.username:
            raise ConfigError(f"{url.display}: expected memory:// or memory://name")
        options = url.options(MemoryOptions)
        return cls(_named.setdefault(url.hosts[0], {}) if url.hosts else {}, options)

    async def open(self) -> None:
        """There is nothing to connect to."""

    async def close(self) -> None:
        """What is under a name stays for the next who opens it."""

    async def ping(self) -> None:
        """A process answers itself."""

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the topic and the groups that are missing."""
        target = self._topics.setdefault(topic, Topic(topic))
        for group in groups:
            target.groups.setdefault(group, Group(target, group, target.first))

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Forget the topic, or one group; its receivers lose their connection."""
        if group is None:
            removed = self._topics.pop(topic, None)
            if removed is not None:
                removed.lose()
        elif (target := self._topics.get(topic)) is not None:
            target.lose(group)

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Append each message to its topic."""
        touched: dict[str, Topic] = {}
        results: list[Exception | None] = []
        now = asyncio.get_running_loop().time()
        for message in messages:
            topic = self._topics.get(message.topic)
            if topic is None:
                results.append(UnknownTopic(message.topic))
            else:
                if message.topic not in touched:
                    topic.carry(now)
                    touched[message.topic] = topic
                topic.append(message)
                results.append(None)
        for topic in touched.values():
            topic.wake()
            topic.trim(now, self._retain)
        return results

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        """Keep each message beside its topic until it is due."""
        now, wall = asyncio.get_running_loop().time(), steady()
        results: list[Exception | None] = []
        for entry in entries:
            topic = self._topics.get(entry.message.topic)
            if topic is not None:
                topic.carry(now)
                topic.schedule(entry, now + max(0.0, entry.due.timestamp() - wall))
                topic.wake()
            results.append(UnknownTopic(entry.message.topic) if topic is None else None)
        return results

    async def cancel(self, topic: str, schedule_id: str) -> bool:
        """Forget a message, unless it is due."""
        target = self._topics.get(topic)
        if target is None:
            return False
        target.carry(asyncio.get_running_loop().time())
        return target.cancel(schedule_id)

    async def upcoming(self, topic: str, limit: int) -> Sequence[Scheduled]:
        """What is not due yet."""
        target = self._topics.get(topic)
        if target is None:
            return []
        target.carry(asyncio.get_running_loop().time())
        return [entry for _, _, entry in heapq.nsmallest(limit, target.upcoming())]

    async def subscribe(self, subscription: Subscription) -> "MemoryReceiver":
        """Join the group, creating what is missing if that is allowed."""
        topic = self._topics.get(subscription.topic)
        group = topic.groups.get(subscription.group) if topic else None
        if group is None:
            if not (subscription.create or (topic is not None and subscription.ephemeral)):
                raise ConfigError(
                    f"there is no group {subscription.group!r} of a topic {subscription.topic!r}: declare it first"
                )
            await self.declare(subscription.topic, [subscription.group])
            topic = self._topics[subscription.topic]
            group = topic.groups[subscription.group]
            topic.carry(asyncio.get_running_loop().time())
            if not subscription.past and (subscription.start == "latest" or subscription.ephemeral):
                group.cursor = topic.end
        receiver = MemoryReceiver(group, subscription)
        group.receivers.append(receiver)
        return receiver

    async def lag(self, topic: str, group: str) -> int | None:
        """Count what the group has not acknowledged."""
        target = self._topics.get(topic)
        if target is None:
            return 0
        target.carry(asyncio.get_running_loop().time())
        return target.groups.get(group, Group(target, group, target.first)).lag()

    async def topics(self) -> Sequence[str]:
        """All that were declared."""
        return list(self._topics)

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Of each topic its groups."""
        return {name: list(topic.groups) for name, topic in self._topics.items() if name in topics}
