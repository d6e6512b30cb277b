"""The embedded durable broker: topics in one SQLite file, shared by any number of processes of one machine.

`sqlite:///events.db` is a path relative to the working directory, `sqlite:////var/lib/events.db` an absolute one.
What was confirmed is on disk, and survives kill -9 and, with `synchronous=full`, a power failure.
"""

import asyncio
import functools
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from things_kit.brokers.sqlite import admin, scheduling
from things_kit.brokers.sqlite.errors import primary_code
from things_kit.brokers.sqlite.options import SQLiteOptions, path_of
from things_kit.brokers.sqlite.receiver import SQLiteReceiver
from things_kit.brokers.sqlite.store import Member, Store
from things_kit.brokers.sqlite.wire import by_topic, pack
from things_kit.brokers.sqlite.worker import Worker, ignore_failure
from things_kit.engine.clock import steady
from things_kit.engine.driver import Capabilities, ConnectionLost, Scheduled, Subscription, UnknownTopic
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ClosedError, ConfigError, MessageTooLarge, PublishError
from things_kit.messaging.message import Message

if TYPE_CHECKING:
    from things_kit.engine.facts import Facts, Question


class SQLiteDriver:
    """Topics, groups and leases as rows; one thread does all the database work of one driver."""

    def __init__(self, path: Path, options: SQLiteOptions, *, creates: bool = True) -> None:
        self.capabilities = Capabilities(
            delay=True,
            lanes=True,
            lease=options.lease,
            retained=True,
            attempts=True,
            targeted=True,
            suspects=True,
            lag=True,
            schedule_ids=True,
            schedules=True,
            max_message_bytes=options.max_message_bytes,
        )
        self._path = path
        self._options = options
        self._creates = creates
        self._worker: Worker | None = None
        self._undoing: set[asyncio.Future[Member]] = set()

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver, not yet open, for `sqlite:///PATH`."""
        return cls(path_of(url), url.options(SQLiteOptions), creates=url.engine.declare)

    async def open(self) -> None:
        """Open the file, or create it, unless nothing is to be created."""
        options = self._options
        if not self._creates and not self._path.exists():
            raise ConfigError(f"the file {str(self._path)!r} does not exist")
        durable = options.synchronous == "full"
        worker = Worker(
            self._path,
            schema=options.schema,
            lease=options.lease,
            retain=options.retain,
            durable=durable,
            creates=self._creates,
        )
        await worker.start()
        self._worker = worker

    async def close(self) -> None:
        """Finish what was begun, end the thread and close the file."""
        if self._undoing:
            await asyncio.wait(self._undoing)
        if self._worker is not None:
            await self._worker.stop()

    async def ping(self) -> None:
        """Begin to write: a file that another process keeps locked can be read, but takes no message."""
        await self._opened.write(_nothing, durable=False)

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create what is missing."""
        await self._opened.write(lambda store: admin.declare(store, topic, groups))

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete a topic, or one group; waiting receivers of it lose their subscription."""
        await self._opened.write(lambda store: admin.remove(store, topic, group))

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Append messages to their topics, in one transaction."""
        batches = by_topic(messages, int(steady()))
        return await self._stored(messages, lambda store: scheduling.append_behind(store, batches))

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        """Keep messages until they are due, in one transaction."""
        messages = [entry.message for entry in entries]
        rows = [
            (entry.message.topic, entry.due.timestamp(), entry.schedule_id, row)
            for entry, row in zip(entries, pack(messages, int(steady())), strict=True)
        ]
        return await self._stored(messages, lambda store: scheduling.schedule(store, rows))

    async def _stored(
        self, messages: Sequence[Message], work: Callable[[Store], set[str]]
    ) -> Sequence[Exception | None]:
        """Store messages by work that returns the names of topics which do not exist."""
        try:
            unknown = await self._opened.write(work)
        except (ConnectionLost, MessageTooLarge) as error:
            return [_refusal(error)] * len(messages)
        if not unknown:
            return [None] * len(messages)
        return [UnknownTopic(message.topic) if message.topic in unknown else None for message in messages]

    async def cancel(self, topic: str, schedule_id: str) -> bool:
        """Delete a message that is not due."""
        return await self._opened.write(lambda store: scheduling.cancel(store, topic, schedule_id))

    async def upcoming(self, topic: str, limit: int) -> Sequence[Scheduled]:
        """What is not due yet."""
        return await self._opened.read(lambda store: scheduling.upcoming(store, topic, limit))

    async def source(self) -> str:
        """See `Identified`."""
        found = await self._opened.read(lambda store: store.row("SELECT source FROM {s}_installation"))
        return str(found[0])

    async def subscribe(self, subscription: Subscription) -> SQLiteReceiver:
        """Join a group."""
        worker = self._opened
        joined = worker.write(lambda store: admin.subscribe(store, subscription))
        try:
            member = await asyncio.shield(joined)
        except asyncio.CancelledError:
            self._undoing.add(joined)
            joined.add_done_callback(functools.partial(self._leave_again, worker))
            raise
        if member.subscription.ephemeral:
            worker.keep_alive(member)
        return SQLiteReceiver(worker, member, subscription.inbox)

    async def lag(self, topic: str, group: str) -> int | None:
        """How many messages the group has not settled."""
        return await self._opened.read(lambda store: admin.lag(store, topic, group))

    async def topics(self) -> Sequence[str]:
        """All topics of the file."""
        return await self._opened.read(admin.topics)

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Of each topic its groups, but those that vanish with their consumers."""
        found = await self._opened.read(admin.groups)
        return {topic: found.get(topic, []) for topic in topics}

    async def facts(self, question: "Question") -> "Facts":
        """How things are in the file."""
        from things_kit.brokers.sqlite.facts import facts_of  # noqa: PLC0415 - nobody else needs it

        path, durable = self._path, self._options.synchronous == "full"
        return await self._opened.read(lambda store: facts_of(store, path, question, durable=durable))

    def _leave_again(self, worker: Worker, joined: asyncio.Future[Member]) -> None:
        """Undo a subscription whose caller was cancelled."""
        self._undoing.discard(joined)
        if joined.cancelled() or joined.exception() or worker.stopping:
            return
        member = joined.result()
        member.closed = True
        ignore_failure(worker.write(lambda store: admin.leave(store, member), insists=True))

    @property
    def _opened(self) -> Worker:
        if self._worker is None:
            raise ClosedError("the SQLite broker is not open")
        return self._worker


def _nothing(store: Store) -> None:
    store.execute("SELECT count(*) FROM {s}_topic").fetchone()


def _refusal(error: Exception) -> Exception:
    """What became of a send that failed: a full disk is final, other losses of the file are worth another try."""
    if isinstance(error, MessageTooLarge):
        return error
    if primary_code(error.__cause__ or error) == sqlite3.SQLITE_FULL:
        refused = PublishError(f"{error}; nothing of this batch was stored")
        refused.__cause__ = error.__cause__
        return refused
    raise error
