"""What brokers keep that have a message wait for its time."""

import asyncio
from bisect import insort
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

import msgspec

from things_kit.engine.driver import ConnectionLost, Scheduled
from things_kit.engine.listeners import nobody_listens
from things_kit.engine.wait_topics import is_wait_topic, waiting
from things_kit.messaging.errors import UnsupportedError
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP
from things_kit.testing.simulation.models.traits import Keeping

if TYPE_CHECKING:
    from things_kit.testing.simulation.models.server import Server, Topic

PAUSE: Final = 0.1
"""Seconds until a message that is as good as due is looked for again."""

MOST_DELAYED: Final = 900.0
"""Seconds for which a copy is hidden at first, at the most."""

NOT_KEPT: Final = Keeping()
"""That of a broker which keeps nothing."""


def due_of(message: Message) -> float:
    """When what is in a message of a wait topic is due, in seconds since 1970; 0 for any other message."""
    try:
        return waiting(message.value).due if is_wait_topic(message.topic) else 0.0
    except msgspec.DecodeError:
        return 0.0


class Timetable:
    """What is to come in one topic, soonest first; of one time, what was scheduled first."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Scheduled]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, entry: Scheduled, at: float) -> None:
        """Keep it until this time, in place of another of its `schedule_id`."""
        if entry.schedule_id is not None:
            self.cancel(entry.schedule_id)
        self._count += 1
        insort(self._waiting, (at, self._count, entry))

    def cancel(self, schedule_id: str) -> bool:
        """Forget what waits under this name; whether anything did."""
        left = [each for each in self._waiting if each[2].schedule_id != schedule_id]
        found = len(left) < len(self._waiting)
        self._waiting = left
        return found

    def pop_due(self, now: float) -> list[Message]:
        """What has become due by now."""
        due = [entry.message for at, _, entry in self._waiting if at <= now]
        del self._waiting[: len(due)]
        return due

    def time_of(self, schedule_id: str) -> float | None:
        """When what waits under this name is due."""
        return next((at for at, _, entry in self._waiting if entry.schedule_id == schedule_id), None)

    def upcoming(self, limit: int) -> list[Scheduled]:
        """What comes next."""
        return [entry for _, _, entry in self._waiting[:limit]]

    def waits_until(self, horizon: float) -> bool:
        """Whether anything is due by then."""
        return bool(self._waiting) and self._waiting[0][0] <= horizon


class Schedules:
    """What a server has to come in all of its topics."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._keeping = server.traits.keeping or NOT_KEPT

    def add(self, entry: Scheduled, shift: float) -> Exception | None:
        """Keep a message until its time and so many seconds, or say why not."""
        server, keeping = self._server, self._keeping
        self.look(entry.message.topic)
        refused = server.refusal(entry.message, unheard=keeping.patient)
        if refused is not None:
            return refused
        topic = server.topics[entry.message.topic]
        if keeping.by == "copies" and not topic.groups:
            return nobody_listens(topic.name)
        at = entry.due.timestamp() + shift
        wait = at - self.now()
        if wait > keeping.longest:
            return UnsupportedError(f"{server.traits.name} does not keep a message until {entry.due}")
        server.note("scheduled", entry.message)
        if keeping.by == "copies":
            at, wait = at - 1.0, self._copy(topic, entry, wait)
        topic.timetable.add(entry, at)
        late = max(0.0, wait + server.chance.between(0.0, keeping.late))
        asyncio.get_running_loop().call_later(late, self.carry, topic, context=server.context)
        return None

    def shift(self) -> float:
        """Seconds by which what is scheduled now comes later than it says, as somebody else's clock is asked, or by chance."""
        keeping = self._keeping
        wrong = 0.0 if keeping.by == "clock" else self.now() - self._server.clock()
        return wrong + self._server.chance.between(0.0, keeping.loose)

    def _copy(self, topic: "Topic", entry: Scheduled, wait: float) -> float:
        """Each group gets its own at once, which is hidden for whole seconds. Returns when it counts as published."""
        hidden = float(int(min(MOST_DELAYED, max(0.0, wait))))
        target = entry.message.headers.get(REPLAY_GROUP)
        for name, group in topic.groups.items():
            if target in {None, name}:
                group.add_copy(entry.message, hidden, entry.due.timestamp())
        return wait - 1.0  # it may be in somebody's hands by then

    def as_good_as_due(self, topic: str, schedule_id: str | None) -> bool:
        """Whether what waits under this name can neither be replaced nor cancelled any more."""
        self.look(topic)
        if schedule_id is None or topic not in self._server.topics:
            return False
        at = self._server.topics[topic].timetable.time_of(schedule_id)
        return at is not None and at - self.now() < self._keeping.margin

    def cancel(self, topic: str, schedule_id: str) -> bool:
        """Whether something waited under this name, which never comes now."""
        found = (
            not self.as_good_as_due(topic, schedule_id)
            and topic in self._server.topics
            and self._server.topics[topic].timetable.cancel(schedule_id)
        )
        if found:
            self._server.note(f"cancelled: {schedule_id}", None)
        return found

    def upcoming(self, topic: str, limit: int) -> list[Scheduled]:
        """What is to come in a topic, soonest first."""
        self.look(topic)
        found = self._server.topics.get(topic)
        return [] if found is None else found.timetable.upcoming(limit)

    def look(self, name: str) -> None:
        """Somebody looks at a topic: a punctual broker has appended what has become due."""
        if self._keeping.punctual and name in self._server.topics:
            self.carry(self._server.topics[name])

    def carry(self, topic: "Topic") -> None:
        """Append what has become due, as the broker does at its time."""
        server, keeping = self._server, self._keeping
        if server.topics.get(topic.name) is not topic:
            return  # what was to come went with it
        if not len(topic.timetable) or (keeping.patient and not topic.groups):
            return  # until there is one
        for message in topic.timetable.pop_due(self.now()):
            if keeping.by == "copies":
                server.store(topic, message)
            else:
                server.take(topic, message)

    def waiting(self, until: float) -> list[str]:
        """The topics in which something is due by this time of the loop's."""
        horizon = self.horizon(until)
        return [topic.name for topic in self._server.topics.values() if topic.timetable.waits_until(horizon)]

    def horizon(self, until: float) -> float:
        """This time of the loop's in seconds since 1970."""
        return self.now() + until - asyncio.get_running_loop().time()

    def now(self) -> float:
        """By the broker's own clock, whoever asks."""
        return Context().run(self._server.clock)


class KeepsSchedules:
    """The part of a driver whose broker has messages wait for their time."""

    server: "Server"
    call: Callable[[], Coroutine[Any, Any, None]]

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        """Keep them; the answer may be lost, and then it is not known how many were taken."""
        await self.call()
        schedules, chance = self.server.schedules, self.server.chance
        while any(schedules.as_good_as_due(each.message.topic, each.schedule_id) for each in entries):
            await asyncio.sleep(PAUSE)
            await self.call()
        lost = chance.strikes("unknown_publish")
        taken = entries[: chance.below(len(entries) + 1)] if lost else entries
        shift = schedules.shift()
        results = [schedules.add(entry, shift) for entry in taken]
        if lost:
            self.server.note("schedules, and its connection breaks", None)
            raise ConnectionLost("the connection broke before the broker had answered")
        return results


class NamesSchedules:
    """The part of a driver whose broker knows by a name what waits."""

    server: "Server"
    call: Callable[[], Coroutine[Any, Any, None]]

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
