"""What brokers keep that have a message wait for its time."""

import asyncio
from bisect import insort
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from things_kit.engine.driver import ConnectionLost, Scheduled
from things_kit.messaging.message import Message

if TYPE_CHECKING:
    from things_kit.testing.simulation.models.server import Server

LATE: Final = (0.0, 0.1)
"""Seconds after its time that a broker looks by itself, from and to."""


class Timetable:
    """What is to come in one topic, soonest first; of one time, what was scheduled first."""

    def __init__(self) -> None:
        self._waiting: list[tuple[datetime, int, Scheduled]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, entry: Scheduled) -> None:
        """Keep it, in place of another of its `schedule_id`."""
        if entry.schedule_id is not None:
            self.cancel(entry.schedule_id)
        self._count += 1
        insort(self._waiting, (entry.due, self._count, entry))

    def cancel(self, schedule_id: str) -> bool:
        """Forget what waits under this name; whether anything did."""
        left = [each for each in self._waiting if each[2].schedule_id != schedule_id]
        found = len(left) < len(self._waiting)
        self._waiting = left
        return found

    def pop_due(self, now: datetime) -> list[Message]:
        """What has become due by now."""
        due = [entry.message for at, _, entry in self._waiting if at <= now]
        del self._waiting[: len(due)]
        return due

    def upcoming(self, limit: int) -> list[Scheduled]:
        """What comes next."""
        return [entry for _, _, entry in self._waiting[:limit]]

    def waits_until(self, horizon: datetime) -> bool:
        """Whether anything is due by then."""
        return bool(self._waiting) and self._waiting[0][0] <= horizon


class Schedules:
    """What a server has to come in all of its topics."""

    def __init__(self, server: "Server") -> None:
        self._server = server

    def add(self, entry: Scheduled) -> Exception | None:
        """Keep a message until its time, or say why not."""
        server, topic = self._server, entry.message.topic
        self.carry(topic)
        refused = server.refusal(entry.message)
        if refused is None:
            server.topics[topic].timetable.add(entry)
            server.note("scheduled", entry.message)
            wait = (entry.due - self._now()).total_seconds() + server.chance.between(*LATE)
            loop = asyncio.get_running_loop()
            loop.call_later(max(0.0, wait), self.carry, topic, context=server.context)
        return refused

    def cancel(self, topic: str, schedule_id: str) -> bool:
        """Whether something waited under this name, which never comes now."""
        self.carry(topic)
        found = topic in self._server.topics and self._server.topics[topic].timetable.cancel(schedule_id)
        if found:
            self._server.note(f"cancelled: {schedule_id}", None)
        return found

    def upcoming(self, topic: str, limit: int) -> list[Scheduled]:
        """What is to come in a topic, soonest first."""
        self.carry(topic)
        found = self._server.topics.get(topic)
        return [] if found is None else found.timetable.upcoming(limit)

    def carry(self, name: str) -> None:
        """Append what has become due: whatever looks at a topic does this first, and the broker does at its time."""
        server = self._server
        topic = server.topics.get(name)
        if topic is None:
            return
        for message in topic.timetable.pop_due(self._now()):
            if server.refusal(message) is None:  # else nobody listens by now, and it is dropped
                server.take(message)

    def waiting(self, until: float) -> list[str]:
        """The topics in which something is due by this time of the loop's."""
        ahead = timedelta(seconds=until - asyncio.get_running_loop().time())
        topics = self._server.topics.values()
        return [topic.name for topic in topics if topic.timetable.waits_until(self._now() + ahead)]

    def _now(self) -> datetime:
        """By the broker's own clock, whoever asks."""
        return datetime.fromtimestamp(Context().run(self._server.clock), UTC)


class KeepsSchedules:
    """The part of a driver whose broker has messages wait for their time, which is by its own clock."""

    server: "Server"
    call: Callable[[], Coroutine[Any, Any, None]]

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        """Keep them; the answer may be lost, and then it is not known how many were taken."""
        await self.call()
        chance = self.server.chance
        lost = chance.strikes("unknown_publish")
        taken = entries[: chance.below(len(entries) + 1)] if lost else entries
        results = [self.server.schedules.add(entry) for entry in taken]
        if lost:
            self.server.note("schedules, and its connection breaks", None)
            raise ConnectionLost("the connection broke before the broker had answered")
        return results

    async def cancel(self, topic: str, schedule_id: str) -> bool:
        """Have it never come; the answer may be lost, with or without an effect."""
        await self.call()
        lost = self.server.chance.strikes("unknown_publish")
        cancelled = not (lost and self.server.chance.below(2)) and self.server.schedules.cancel(
            topic, schedule_id
        )
        if lost:
            self.server.note("cancels, and its connection breaks", None)
            raise ConnectionLost("the connection broke before the broker had answered")
        return cancelled

    async def upcoming(self, topic: str, limit: int) -> Sequence[Scheduled]:
        """What is to come."""
        await self.call()
        return self.server.schedules.upcoming(topic, limit)
