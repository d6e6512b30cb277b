"""The embedded durable broker: topics in one SQLite file, shared by any number of processes of one machine.

`sqlite:///events.db` is a path relative to the working directory, `sqlite:////var/lib/events.db` an absolute one.
What was confirmed is on disk, and survives kill -9 and, with `synchronous=full`, a power failure.
"""

import asyncio
import functools
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import msgspec

from things_kit.brokers.sqlite.errors import primary_code
from things_kit.brokers.sqlite.packing import attempts_of, offsets_of, pack, unpack
from things_kit.brokers.sqlite.store import Give, Member, Page, Row, Store
from things_kit.brokers.sqlite.worker import Request, Worker
from things_kit.engine.clock import steady
from things_kit.engine.driver import (
    Capabilities,
    ConnectionLost,
    Delivery,
    Inbox,
    Release,
    Subscription,
    UnknownTopic,
)
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ClosedError, ConfigError, MessageTooLarge, PublishError
from things_kit.messaging.message import Message

if TYPE_CHECKING:
    from things_kit.engine.facts import Facts, Question

LONGEST_DELAY: Final = 1e10


class SQLiteOptions(msgspec.Struct, frozen=True):
    """The options of a `sqlite://` URL.

    Attributes:
        synchronous: "full": a power failure loses nothing that was confirmed. "normal": it may lose the last moments;
            the death of a process still loses nothing.
        retain: Seconds for which a message stays after all groups of its topic have settled it.
        lease: Seconds after which what a dead process held is handed to another.
        max_message_bytes: The largest value, key and headers together.
    """

    synchronous: Literal["full", "normal"] = "full"
    retain: float = 604_800.0
    lease: float = 5.0
    max_message_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        if not self.retain >= 0:
            raise ValueError("retain must be at least 0 seconds")
        if not 0 < self.lease < float("inf"):
            raise ValueError("lease must be more than 0 seconds")
        if not 0 < self.max_message_bytes <= 500_000_000:
            raise ValueError("max_message_bytes must be from 1 to 500000000")


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
        if url.hosts or url.username or url.password:
            meant = "".join(url.hosts[:1]) + url.path
            raise ConfigError(
                f'sqlite:// has no host; for a file in the working directory write "sqlite:///{meant}"'
            )
        name = url.path[1:]
        if name in {"", ":memory:"}:
            raise ConfigError(
                "sqlite:// needs a file, such as sqlite:///events.db; for messages in memory use memory://"
            )
        if "\0" in name:
            raise ConfigError("sqlite://: a path has no NUL character")
        return cls(Path(name), url.options(SQLiteOptions), creates=url.engine.declare)

    async def open(self) -> None:
        """Open the file, or create it, unless nothing is to be created."""
        options = self._options
        if not self._creates and not self._path.exists():
            raise ConfigError(f"the file {str(self._path)!r} does not exist")
        durable = options.synchronous == "full"
        worker = Worker(self._path, lease=options.lease, retain=options.retain, durable=durable)
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
        await self._opened.write(lambda store: store.declare(topic, groups))

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete a topic, or one group; waiting receivers of it lose their subscription."""
        await self._opened.write(lambda store: store.remove(topic, group))

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Append messages to their topics, in one transaction."""
        batches: dict[str, list[Row]] = {}
        now = int(time.time())
        for message in messages:
            batches.setdefault(message.topic, []).append(pack(message, now))
        try:
            unknown = await self._opened.write(lambda store: store.send(batches))
        except (ConnectionLost, MessageTooLarge) as error:
            return [_refusal(error)] * len(messages)
        if not unknown:
            return [None] * len(messages)
        return [UnknownTopic(message.topic) if message.topic in unknown else None for message in messages]

    async def subscribe(self, subscription: Subscription) -> "SQLiteReceiver":
        """Join a group."""
        worker = self._opened
        joined = worker.write(lambda store: store.subscribe(subscription))
        try:
            member = await asyncio.shield(joined)
        except asyncio.CancelledError:
            self._undoing.add(joined)
            joined.add_done_callback(functools.partial(self._leave_again, worker))
            raise
        if member.ephemeral:
            worker.keep_alive(member)
        return SQLiteReceiver(worker, member, subscription.inbox)

    async def lag(self, topic: str, group: str) -> int | None:
        """How many messages the group has not settled."""
        return await self._opened.read(lambda store: store.lag(topic, group))

    async def topics(self) -> Sequence[str]:
        """All topics of the file."""
        return await self._opened.read(lambda store: store.topics())

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Of each topic its groups, but those that vanish with their consumers."""
        found = await self._opened.read(lambda store: store.groups())
        return {topic: found.get(topic, []) for topic in topics}

    async def facts(self, question: "Question") -> "Facts":
        """How things are in the file."""
        from things_kit.brokers.sqlite.facts import facts_of  # noqa: PLC0415 - nobody else needs it

        path, durable = self._path, self._options.synchronous == "full"
        return await self._opened.read(lambda store: facts_of(store, path, question, durable=durable))

    def _leave_again(self, worker: "Worker", joined: "asyncio.Future[Member]") -> None:
        """Undo a subscription whose caller was cancelled."""
        self._undoing.discard(joined)
        if joined.cancelled() or joined.exception() or worker.stopping:
            return
        member = joined.result()
        member.closed = True
        _ignore_failure(worker.write(lambda store: store.leave(member)))

    @property
    def _opened(self) -> "Worker":
        if self._worker is None:
            raise ClosedError("the SQLite broker is not open")
        return self._worker


class SQLiteReceiver:
    """One member of a group. A delivery's token is its offset."""

    def __init__(self, worker: "Worker", member: Member, inbox: Inbox) -> None:
        self._worker = worker
        self._inbox = inbox
        self._member = member
        self._abandoned: asyncio.Future[Page | None] | None = None

    async def fetch(self, limit: int, wait: float) -> None:
        """Up to `limit` messages, as soon as there is one."""
        await self.quiesce()
        request = Request(self._member, limit, wait)
        self._worker.submit(request)
        try:
            page = await asyncio.shield(request.future)
        except asyncio.CancelledError:
            self._abandoned = request.future
            request.abandoned = True
            request.future.add_done_callback(self._give_back)
            self._worker.nudge()
            raise
        if page is not None:
            deliveries = unpack(self._member.topic_name, page)
            self._member.held += len(deliveries)
            self._inbox.put(deliveries)

    async def quiesce(self) -> None:
        """Wait until what a cancelled call took is on its way back, or a lane would be out of order."""
        if self._abandoned is not None:
            await asyncio.wait([self._abandoned])
            self._abandoned = None

    async def overdue(self) -> int | None:
        """What nobody has, and is due, in lanes that nobody has."""
        member = self._member
        return await self._worker.read(lambda store: store.waiting(member, steady()))

    async def mark(self, delivery: Delivery, suspect: int) -> None:
        """Note it beside the loan."""
        member, offset = self._member, delivery.token
        await self._worker.write(lambda store: store.mark(member, offset, suspect))

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Settle in one transaction, on disk when this returns."""
        now, member = steady(), self._member
        done: list[int] = [delivery.token for delivery in acknowledged]
        back: list[Give] = [
            (
                given.delivery.token,
                now + min(max(given.delay, 0.0), LONGEST_DELAY),
                given.attempt,
                given.aside,
            )
            for given in released
        ]
        if done or back:
            await self._worker.write(lambda store: store.settle(member, done, back))
            member.held -= len(done) + len(back)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Renew the receiver's lease, and by it that of all it holds."""
        member = self._member
        await self._worker.write(lambda store: store.renew(member, steady()), durable=False)

    async def close(self) -> None:
        """Leave the group."""
        member = self._member
        if member.closed or self._worker.stopping:
            return
        member.closed = True
        self._worker.forget(member)
        await self._worker.write(lambda store: store.leave(member))

    def _give_back(self, future: "asyncio.Future[Page | None]") -> None:
        """A cancelled call's messages return to the group, as if it had not taken them."""
        page = None if future.cancelled() or future.exception() else future.result()
        if page is None or self._member.closed or self._worker.stopping:
            return
        now, member = steady(), self._member
        offsets = offsets_of(page)
        attempts = attempts_of(page, len(offsets))
        back = [(offset, now, attempt, False) for offset, attempt in zip(offsets, attempts, strict=True)]
        _ignore_failure(self._worker.write(lambda store: store.settle(member, [], back), durable=False))


def _nothing(store: Store) -> None:
    store.connection.execute("SELECT count(*) FROM topic").fetchone()


def _ignore_failure(future: "asyncio.Future[Any]") -> None:
    """Nobody awaits this; if it fails, the lease brings the messages back."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())


def _refusal(error: Exception) -> Exception:
    """What became of a send that failed: a full disk is final, other losses of the file are worth another try."""
    if isinstance(error, MessageTooLarge):
        return error
    if primary_code(error.__cause__ or error) == sqlite3.SQLITE_FULL:
        refused = PublishError(f"{error}; nothing of this batch was stored")
        refused.__cause__ = error.__cause__
        return refused
    raise error
