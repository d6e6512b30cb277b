"""Topics, subscriptions and queues, and the messages in them, apart from any protocol."""

import heapq
import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

from things_kit.testing.servers.servicebus_emulator.filters import Rule
from things_kit.testing.servers.servicebus_emulator.journal import Journal

DEAD: Final = "$DeadLetterQueue"


class Settings:
    """What an entity was declared with, as far as it is obeyed."""

    def __init__(
        self, lock: float = 60.0, most: int = 10, sessions: bool = False, dedup: float = 0.0, ttl: float = 0.0
    ) -> None:
        self.lock, self.most, self.sessions, self.dedup, self.ttl = lock, most, sessions, dedup, ttl


class Entry:
    """A message in one queue. It is locked while it has a token."""

    __slots__ = ("content", "count", "expires", "number", "session", "since", "token", "until")

    def __init__(self, number: int, content: Any, session: str | None, since: float) -> None:
        self.number, self.content, self.session, self.since = number, content, session, since
        self.count = 0
        self.token: uuid.UUID | None = None
        self.until = 0.0
        self.expires: float | None = None


class Queue:
    """A queue, or the one behind a subscription."""

    def __init__(self, path: str, settings: Settings, journal: Journal) -> None:
        self.path, self.settings, self._journal = path, settings, journal
        self.entries: dict[int, Entry] = {}
        self.locked: dict[uuid.UUID, Entry] = {}
        self.dead: dict[int, Entry] = {}
        self.rules: dict[str, Rule] = {}
        self.sessions: dict[str, tuple[object, float]] = {}  # whose a session is, and until when
        self._numbers = itertools.count(1)
        self._ready: dict[str | None, list[int]] = {}  # by session, if there are sessions

    def put(self, content: Any, session: str | None, now: float, number: int | None = None) -> None:
        """Add a message; `number` is from the journal."""
        entry = Entry(next(self._numbers) if number is None else number, content, session, now)
        if number is None:
            self._journal.write("put", self.path, entry.number, session, now, content)
        else:
            self._numbers = itertools.count(number + 1)
        if self.settings.ttl:
            entry.expires = now + self.settings.ttl
        self.entries[entry.number] = entry
        self._free(entry)

    def _free(self, entry: Entry) -> None:
        session = entry.session if self.settings.sessions else None
        heapq.heappush(self._ready.setdefault(session, []), entry.number)

    def _next(self, session: str | None) -> Entry | None:
        """The first of a session that nobody has locked; what has expired is removed."""
        ready, now = self._ready.get(session, []), time.time()
        while ready:
            entry = self.entries.get(ready[0])
            if entry is not None and entry.token is None:
                if entry.expires is None or entry.expires > now:
                    return entry
                self.remove(entry)
            heapq.heappop(ready)
        self._ready.pop(session, None)
        return None

    def take(self, owner: object, session: str | None = None) -> Entry | None:
        """Lock the next message, of a session if there are sessions."""
        found = self._next(session)
        if found is not None:
            heapq.heappop(self._ready[session])
            found.token = uuid.uuid4()
            until = time.time() + self.settings.lock
            found.until = self.sessions[session][1] if session in self.sessions else until
            self.locked[found.token] = found
        return found

    def remove(self, entry: Entry) -> None:
        """It is done with."""
        self._unlock(entry)
        self.entries.pop(entry.number, None)
        self._journal.write("removed", self.path, entry.number)

    def give_back(self, entry: Entry, *, counts: bool) -> None:
        """Let it be taken again; after too many deliveries it goes to the dead ones."""
        self._unlock(entry)
        if counts:
            entry.count += 1
            self._journal.write("counted", self.path, entry.number, entry.count)
        if entry.count >= self.settings.most:
            self.bury(entry)
        else:
            self._free(entry)

    def bury(self, entry: Entry) -> None:
        """Put it among the dead ones."""
        self.remove(entry)
        self.dead[entry.number] = entry

    def _unlock(self, entry: Entry) -> None:
        if entry.token is not None:
            self.locked.pop(entry.token, None)
            entry.token = None

    def expire(self, now: float) -> bool:
        """Give back what was locked for too long, and sessions that nobody renewed; whether there was any."""
        sessions = [session for session, (_, until) in self.sessions.items() if until <= now]
        for session in sessions:
            self.leave(session, counts=True)
        entries = [entry for entry in self.locked.values() if entry.until <= now]
        for entry in entries:
            self.give_back(entry, counts=True)
        return bool(sessions or entries)

    # --- sessions

    def accept(self, owner: object, wanted: str | None) -> str | None:
        """Lock a session, or the next that has messages; None if there is none."""
        if wanted is None:
            waiting = [(entry.number, each) for each in list(self._ready) if (entry := self._open(each))]
            session = min(waiting)[1] if waiting else None
        else:
            session = None if wanted in self.sessions else wanted
        if session is not None:
            self.sessions[session] = (owner, time.time() + self.settings.lock)
        return session

    def _open(self, session: str | None) -> Entry | None:
        return None if session is None or session in self.sessions else self._next(session)

    def renew(self, session: str) -> float | None:
        """Lock a session for longer; None if it is nobody's."""
        if session not in self.sessions:
            return None
        until = time.time() + self.settings.lock
        self.sessions[session] = (self.sessions[session][0], until)
        for entry in self.locked.values():
            if entry.session == session:
                entry.until = until
        return until

    def leave(self, session: str, *, counts: bool) -> None:
        """A session is nobody's any more, and so are its messages."""
        self.sessions.pop(session, None)
        for entry in [entry for entry in self.locked.values() if entry.session == session]:
            self.give_back(entry, counts=counts)


class Topic:
    """A topic: its subscriptions, what is scheduled in it, and the ids that it has had."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.scheduled: list[tuple[float, int, Any]] = []
        self.seen: dict[str, float] = {}


class Namespace:
    """All entities. A path is `queue`, or `topic/subscriptions/name`, in lower case."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.queues: dict[str, Queue] = {}
        self.topics: dict[str, Topic] = {}
        self._order = itertools.count()

    def add_queue(self, path: str, settings: Settings) -> Queue:
        """A queue, or a subscription's; what is there takes on new settings."""
        queue = self.queues.get(path)
        if queue is None:
            queue = self.queues[path] = Queue(path, settings, self.journal)
            if "/" not in path:
                self.topics[path] = Topic(settings)
        queue.settings = settings
        return queue

    def subscriptions(self, topic: str) -> Iterator[Queue]:
        """Where a topic's messages go; a queue's, into itself."""
        if topic in self.queues:
            yield self.queues[topic]
        for path, queue in self.queues.items():
            if path.startswith(f"{topic}/"):
                yield queue

    def drop(self, path: str) -> None:
        """Forget an entity with all that belongs to it."""
        self.topics.pop(path, None)
        for each in [each for each in self.queues if each == path or each.startswith(f"{path}/")]:
            del self.queues[each]

    def publish(
        self, topic: str, content: Any, about: "Envelope", now: float, *, replayed: bool = False
    ) -> None:
        """Take a message in: drop it if its id was there, keep it until it is due, or hand it to the subscriptions."""
        there = self.topics[topic]
        if there.settings.dedup and about.id is not None:
            if now - there.seen.get(about.id, 0.0) < there.settings.dedup:
                return
            there.seen[about.id] = now
        if about.due > now:
            number = next(self._order)
            heapq.heappush(there.scheduled, (about.due, number, (content, about)))
            if not replayed:
                self.journal.write("scheduled", topic, content, about.as_list())
            return
        for queue in self.subscriptions(topic):
            if not queue.rules or any(rule(about.properties) for rule in queue.rules.values()):
                queue.put(content, about.session, now)

    def tick(self, now: float, changed: Callable[[Queue], None]) -> None:
        """Let time pass."""
        for name, topic in self.topics.items():
            while topic.scheduled and topic.scheduled[0][0] <= now:
                _, _, (content, about) = heapq.heappop(topic.scheduled)
                self.journal.write("due", name, about.as_list())
                for queue in self.subscriptions(name):
                    if not queue.rules or any(rule(about.properties) for rule in queue.rules.values()):
                        queue.put(content, about.session, now)
                        changed(queue)
        for queue in self.queues.values():
            if queue.expire(now):
                changed(queue)


class Envelope:
    """What the service must know of a message."""

    def __init__(
        self, identity: str | None, session: str | None, due: float, properties: dict[str, Any]
    ) -> None:
        self.id, self.session, self.due, self.properties = identity, session, due, properties

    def as_list(self) -> list[Any]:
        """For the journal."""
        return [self.id, self.session, self.due, self.properties]
