"""`memory://`: the broker in this process, and the reference for what a driver is.

    memory://               a broker of its own
    memory://name           all that are opened under this name in this process share one

Options: `max_message_bytes` (16 MiB), and `retain` (3600 s): for so long a message is kept for groups yet to come,
after all groups there are have acknowledged it. One event loop at a time may use a name.
"""

import asyncio
import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Final, Self

import msgspec

from things_kit.engine.clock import steady
from things_kit.engine.driver import (
    Capabilities,
    ConnectionLost,
    Delivery,
    Release,
    Scheduled,
    Subscription,
    UnknownTopic,
)
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP

WHOLE_TOPIC: Final = b""
"""The one lane of a group that wants the whole topic in order."""


class MemoryOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of `memory://`."""

    max_message_bytes: int = 16 * 1024 * 1024
    retain: float = 3600.0

    def __post_init__(self) -> None:
        if self.max_message_bytes < 1 or self.retain < 0:
            raise ValueError("max_message_bytes must be from 1, and retain from 0 seconds")


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


class MemoryReceiver:
    """One member of a group, and what it was handed."""

    def __init__(self, group: "Group", subscription: Subscription) -> None:
        self.ordering = subscription.ordering
        self.out: set[int] = set()
        self.woken = asyncio.Event()
        self._group = group
        self._inbox = subscription.inbox
        self._ephemeral = subscription.ephemeral

    async def fetch(self, limit: int, wait: float) -> None:
        """Take what is there; wait for a publish, a release, or the time that one is due."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            if self._group.lost:
                raise ConnectionLost(f"the topic {self._group.topic.name!r} was removed, or this group of it")
            now = loop.time()
            self._group.topic.carry(now)
            deliveries = self._group.take(self, limit, now)
            now = loop.time()
            if deliveries or now >= deadline:
                self._inbox.put(deliveries)
                return
            self.woken.clear()
            try:
                async with asyncio.timeout_at(min(deadline, self._group.next_due(deadline))):
                    await self.woken.wait()
            except TimeoutError:
                pass  # the deadline, or one is due

    async def quiesce(self) -> None:
        """Nothing comes but by `fetch`."""

    async def overdue(self) -> int | None:
        """What is new, or came back and is due."""
        now = asyncio.get_running_loop().time()
        self._group.topic.carry(now)
        return self._group.waiting(now)

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Settle all of them at once."""
        if self._group.lost:
            raise ConnectionLost(f"the topic {self._group.topic.name!r} was removed")
        self._group.acknowledge(self, acknowledged)
        if released:
            self._group.release(self, released, asyncio.get_running_loop().time())

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """There are no leases."""

    async def close(self) -> None:
        """Leave the group; what was not settled goes back."""
        group = self._group
        if self not in group.receivers:
            return
        group.receivers.remove(self)
        if not group.lost:
            held = [Delivery(group.message(offset), offset) for offset in sorted(self.out)]
            given_back = [Release(delivery, attempt=delivery.message.attempt) for delivery in held]
            group.release(self, given_back, asyncio.get_running_loop().time())
        if self._ephemeral:
            group.topic.groups.pop(group.name, None)


class Topic:
    """An append-only log of messages; the offset of the first is `first`, of the next to come `end`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.groups: dict[str, Group] = {}
        self.messages: list[Message] = []
        self.first = 0
        self.targets: list[tuple[int, str]] = []  # offset, and the one group it is for
        self.scheduled: list[tuple[float, int, Scheduled]] = []  # heap: when due, which came first
        self._order = count()
        self._named: dict[str, int] = {}  # which of these has a `schedule_id`
        self._cancelled: set[int] = set()  # what is still in the heap
        self._marks: deque[tuple[float, int]] = deque()  # by when, all before this offset had come

    @property
    def end(self) -> int:
        """The offset of the next message."""
        return self.first + len(self.messages)

    def append(self, message: Message) -> None:
        """Append a copy that knows its place."""
        headers = message.headers
        if headers:
            headers = dict(headers)
            if REPLAY_GROUP in headers:
                self.targets.append((self.end, headers[REPLAY_GROUP]))
        self.messages.append(
            Message(
                message.topic, message.value, message.key, headers, None,
                self.first + len(self.messages), message.timestamp, message.id,
            )
        )  # fmt: skip

    def schedule(self, entry: Scheduled, when: float) -> None:
        """Keep a message until its time, in place of another of its `schedule_id`."""
        number = next(self._order)
        if entry.schedule_id is not None:
            self.cancel(entry.schedule_id)
            self._named[entry.schedule_id] = number
        heapq.heappush(self.scheduled, (when, number, entry))

    def cancel(self, schedule_id: str) -> bool:
        """Forget what waits under this `schedule_id`; whether there was something."""
        number = self._named.pop(schedule_id, None)
        if number is None:
            return False
        self._cancelled.add(number)
        if len(self._cancelled) > len(self.scheduled) // 2:
            self.scheduled = self.upcoming()
            heapq.heapify(self.scheduled)
            self._cancelled.clear()
        return True

    def upcoming(self) -> list[tuple[float, int, Scheduled]]:
        """What waits and is not cancelled, in no order."""
        return [entry for entry in self.scheduled if entry[1] not in self._cancelled]

    def carry(self, now: float) -> None:
        """Append what is due by now: whatever looks at the topic does this first."""
        if not self.scheduled or self.scheduled[0][0] > now:
            return
        while self.scheduled and self.scheduled[0][0] <= now:
            _, number, entry = heapq.heappop(self.scheduled)
            if number in self._cancelled:
                self._cancelled.remove(number)
                continue
            if entry.schedule_id is not None:
                del self._named[entry.schedule_id]
            self.append(entry.message)
        self.wake()

    def foreign(self, since: int, group: str) -> int:
        """How many messages from an offset on are for one group that is not this."""
        start = bisect_left(self.targets, (since, ""))
        return sum(target != group for _, target in self.targets[start:])

    def wake(self) -> None:
        """Something has come."""
        for group in self.groups.values():
            group.wake()

    def lose(self, name: str | None = None) -> None:
        """The topic was removed, or one group of it."""
        for each in list(self.groups) if name is None else [name]:
            group = self.groups.pop(each, None)
            if group is not None:
                group.lost = True
                group.wake()

    def trim(self, now: float, retain: float) -> None:
        """Drop what is older than `retain` seconds and acknowledged by every group; at most once a second."""
        if self._marks and now - self._marks[-1][0] < 1.0:
            return
        self._marks.append((now, self.end))
        old = self.first
        while self._marks and self._marks[0][0] <= now - retain:
            old = self._marks.popleft()[1]
        keep = min([old, *(group.oldest() for group in self.groups.values())])
        if self.groups and keep > self.first:
            del self.messages[: keep - self.first]
            self.first = keep
            del self.targets[: bisect_left(self.targets, (keep, ""))]


class Lane(msgspec.Struct, eq=False):
    """The messages of one key that a group has begun with.

    `out` of them are with `owner`. `waiting` are the offsets, as a heap, that come after those: one of them at a
    time, `head`, may be handed out, when it is due and nothing is out.
    """

    owner: MemoryReceiver | None
    out: int
    waiting: list[int]
    head: int | None = None


class Group:
    """A group's place in its topic: a cursor, and what lies before it but is not acknowledged."""

    def __init__(self, topic: Topic, name: str, cursor: int) -> None:
        self.topic = topic
        self.name = name
        self.cursor = cursor
        self.receivers: list[MemoryReceiver] = []
        self.lost = False
        self._pending = 0
        self._lanes: dict[bytes, Lane] = {}
        self._free: list[tuple[float, int]] = []  # heap: when due, offset
        self._attempts: dict[int, int] = {}
        self._not_before: dict[int, float] = {}
        # The lane of each offset that once waited; None where it was put aside. Of all others the receiver's
        # ordering tells the lane, which saves an entry for each message.
        self._lane_of: dict[int, bytes | None] = {}

    def message(self, offset: int) -> Message:
        """The message at an offset, as it would be handed out now."""
        message = self.topic.messages[offset - self.topic.first]
        attempt = self._attempts.get(offset)
        return message if attempt is None else message.replace(attempt=attempt)

    def lag(self) -> int:
        """Messages that are not acknowledged."""
        return self._pending + self.topic.end - self.cursor - self.topic.foreign(self.cursor, self.name)

    def waiting(self, now: float) -> int:
        """Messages that may be handed out."""
        due = sum(when <= now for when, _ in self._free)
        return due + self.topic.end - self.cursor - self.topic.foreign(self.cursor, self.name)

    def oldest(self) -> int:
        """The offset of the oldest message that is not acknowledged."""
        waiting = (offset for lane in self._lanes.values() for offset in lane.waiting)
        out = (offset for receiver in self.receivers for offset in receiver.out)
        return min([self.cursor, *waiting, *out, *(offset for _, offset in self._free)])

    def next_due(self, otherwise: float) -> float:
        """When the next released or scheduled message is due."""
        scheduled = self.topic.scheduled
        due = self._free[0][0] if self._free else otherwise
        return min(due, scheduled[0][0]) if scheduled else due

    def wake(self) -> None:
        """There may be something to take."""
        for receiver in self.receivers:
            receiver.woken.set()

    # --- handing out

    def take(self, receiver: MemoryReceiver, limit: int, now: float) -> list[Delivery]:
        """Up to `limit` deliveries: first what came back and is due, then what is new."""
        taken: list[Delivery] = []
        if self._free:
            self._take_free(receiver, limit, now, taken)
        while len(taken) < limit and self.cursor < self.topic.end:
            self._take_fresh(receiver, limit, taken)
        return taken

    def _take_free(self, receiver: MemoryReceiver, limit: int, now: float, taken: list[Delivery]) -> None:
        due = []
        while self._free and self._free[0][0] <= now:
            due.append(heapq.heappop(self._free))
        due.sort(key=lambda entry: entry[1])
        while due and len(taken) < limit:
            _, offset = due.pop(0)
            key = self._lane_of.get(offset)
            self._hand(receiver, offset, taken)
            if key is None:
                continue
            lane = self._lanes[key]
            lane.owner, lane.out, lane.head = receiver, 1, None
            # Behind a message in its first attempt the lane flows on; behind a retry it would only come back again
            if offset not in self._attempts:
                while (
                    lane.waiting and len(taken) < limit and self._not_before.get(lane.waiting[0], now) <= now
                ):
                    lane.out += 1
                    self._hand(receiver, heapq.heappop(lane.waiting), taken)
        for entry in due:
            heapq.heappush(self._free, entry)

    def _take_fresh(self, receiver: MemoryReceiver, limit: int, taken: list[Delivery]) -> None:
        """The good path: a few operations a message."""
        topic, lanes, keyed = self.topic, self._lanes, receiver.ordering == "key"
        single = WHOLE_TOPIC if receiver.ordering == "partition" else None
        start, first_out = self.cursor - topic.first, len(taken)
        targets, out = topic.targets, receiver.out
        waiting, room = 0, limit - len(taken)
        offset = self.cursor - 1
        for message in topic.messages[start : start + 2 * limit]:
            offset += 1
            if targets and message.headers.get(REPLAY_GROUP, self.name) != self.name:
                continue
            key = message.key if keyed else single
            if key is not None:
                lane = lanes.get(key)
                if lane is None:
                    lanes[key] = Lane(receiver, 1, [])
                elif lane.owner is receiver and not lane.waiting and lane.head is None:
                    lane.out += 1
                else:
                    heapq.heappush(lane.waiting, offset)
                    self._lane_of[offset] = key
                    waiting += 1
                    continue
            out.add(offset)
            taken.append(Delivery(message, offset))
            room -= 1
            if not room:
                break
        self.cursor = offset + 1
        self._pending += waiting + len(taken) - first_out

    def _hand(self, receiver: MemoryReceiver, offset: int, taken: list[Delivery]) -> None:
        receiver.out.add(offset)
        self._not_before.pop(offset, None)
        taken.append(Delivery(self.message(offset), offset))

    # --- settling

    def acknowledge(self, receiver: MemoryReceiver, deliveries: Sequence[Delivery]) -> None:
        """Done with these."""
        lanes, out, attempts, lane_of = self._lanes, receiver.out, self._attempts, self._lane_of
        keyed = receiver.ordering == "key"
        single = WHOLE_TOPIC if receiver.ordering == "partition" else None
        base, messages = self.topic.first, self.topic.messages
        before = len(out)
        for delivery in deliveries:
            offset = delivery.token
            if offset not in out:
                continue
            out.remove(offset)
            if attempts:
                attempts.pop(offset, None)
            key = messages[offset - base].key if keyed else single
            if lane_of and offset in lane_of:
                key = lane_of.pop(offset)
            if key is not None:
                lane = lanes[key]
                lane.out -= 1
                if not lane.out and not lane.waiting:
                    del lanes[key]
                elif not lane.out:
                    self._next_in(key, lane)
        self._pending -= before - len(out)

    def release(self, receiver: MemoryReceiver, releases: Sequence[Release], now: float) -> None:
        """Take these back; a lane goes on with its lowest offset once all that is out of it came back."""
        touched: set[bytes] = set()
        keyed = receiver.ordering == "key"
        single = WHOLE_TOPIC if receiver.ordering == "partition" else None
        for release in releases:
            offset = release.delivery.token
            if offset not in receiver.out:
                continue
            receiver.out.remove(offset)
            if release.attempt > 1:
                self._attempts[offset] = release.attempt
            own = self.topic.messages[offset - self.topic.first].key if keyed else single
            key = self._lane_of.get(offset, own)
            if key is not None:
                self._lanes[key].out -= 1
                touched.add(key)
            if key is None or release.aside:
                self._lane_of[offset] = None
                heapq.heappush(self._free, (now + release.delay, offset))
            else:
                self._lane_of[offset] = key
                self._not_before[offset] = now + release.delay
                heapq.heappush(self._lanes[key].waiting, offset)
        for key in touched:
            if not self._lanes[key].out:
                self._next_in(key, self._lanes[key])
        self.wake()

    def _next_in(self, key: bytes, lane: Lane) -> None:
        """Nothing of the lane is out: its next message may be, when it is due."""
        lane.owner = None
        if not lane.waiting:
            del self._lanes[key]
            return
        lane.head = heapq.heappop(lane.waiting)
        heapq.heappush(self._free, (self._not_before.get(lane.head, 0.0), lane.head))
        self.wake()


_named: Final[dict[str, dict[str, Topic]]] = {}
