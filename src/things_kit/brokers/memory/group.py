"""A group: its place in a topic, and what it has been handed."""

import heapq
from collections.abc import Sequence
from typing import Final

import msgspec

from things_kit.brokers.memory.receiver import MemoryReceiver
from things_kit.brokers.memory.topic import Topic
from things_kit.engine.driver import Delivery, Release
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP

WHOLE_TOPIC: Final = b""
"""The one lane of a group that wants the whole topic in order."""


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
