"""A topic: a log of messages, and what is to come in it."""

import heapq
from bisect import bisect_left
from collections import deque
from itertools import count
from typing import TYPE_CHECKING

from things_kit.engine.driver import Scheduled
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP

if TYPE_CHECKING:
    from things_kit.brokers.memory.group import Group


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
        headers = {**message.headers}  # who publishes may go on with theirs, and fill them if they are empty
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
