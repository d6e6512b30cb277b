"""The embedded durable broker: topics in one SQLite file, shared by any number of processes of one machine.

`sqlite:///events.db` is a path relative to the working directory, `sqlite:////var/lib/events.db` an absolute one.
What was confirmed is on disk, and survives kill -9 and, with `synchronous=full`, a power failure.
"""

import asyncio
import contextlib
import functools
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final, Generic, Literal, Self, TypeAlias, TypeVar

import msgspec

from things_kit.brokers.sqlite_schema import begin, explain, open_database, primary_code
from things_kit.brokers.sqlite_store import Give, Member, Page, Row, Store
from things_kit.engine.driver import (
    Capabilities,
    ConnectionLost,
    Delivery,
    Release,
    Subscription,
    UnknownTopic,
)
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ClosedError, ConfigError, MessageTooLarge, PublishError
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP

T = TypeVar("T")

POLL: Final = 0.014
"""Seconds between two looks whether another process has committed, while somebody waits."""

STAMPS: Final = 8
"""So many of them look at the log's time stamp only; then one asks `PRAGMA data_version`."""

LOCK_PATIENCE: Final = 5.0
SWEEP_EVERY: Final = 30.0
SWEEP_PAUSE: Final = 0.05
LONGEST_DELAY: Final = 1e10
GROUP: Final = 500


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

    def __init__(self, path: Path, options: SQLiteOptions) -> None:
        self.capabilities = Capabilities(
            delay=True,
            lanes=True,
            lease=options.lease,
            retained=True,
            attempts=True,
            targeted=True,
            lag=True,
            max_message_bytes=options.max_message_bytes,
        )
        self._path = path
        self._options = options
        self._worker: _Worker | None = None
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
        return cls(Path(name), url.options(SQLiteOptions))

    async def open(self) -> None:
        """Open the file, or create it."""
        worker = _Worker(self._path, self._options)
        await worker.start()
        self._worker = worker

    async def close(self) -> None:
        """Finish what was begun, end the thread and close the file."""
        if self._undoing:
            await asyncio.wait(self._undoing)
        if self._worker is not None:
            await self._worker.stop()

    async def ping(self) -> None:
        """Read from the file."""
        await self._opened.read(
            lambda store: store.connection.execute("SELECT count(*) FROM topic").fetchone()
        )

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create what is missing."""
        for name in (topic, *groups):
            _check_name(name)
        await self._opened.write(lambda store: store.declare(topic, groups))

    async def remove(self, topic: str) -> None:
        """Delete a topic; waiting receivers of it lose their subscription."""
        if _encodable(topic):
            await self._opened.write(lambda store: store.remove(topic))

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Append messages to their topics, in one transaction."""
        results: list[Exception | None] = [None] * len(messages)
        batches: dict[str, list[Row]] = {}
        now = int(time.time())
        for index, message in enumerate(messages):
            try:
                row = _pack(message, now, self._options.max_message_bytes)
            except PublishError as error:
                results[index] = error
            else:
                batches.setdefault(message.topic, []).append(row)
        batches = {topic: rows for topic, rows in batches.items() if _encodable(topic)}
        failure: Exception | None = None
        unknown: set[str] = set()
        if batches:
            try:
                unknown = await self._opened.write(lambda store: store.send(batches))
            except (ConnectionLost, MessageTooLarge) as error:
                failure = _refusal(error)
        for index, message in enumerate(messages):
            if results[index] is None:
                if message.topic not in batches:
                    results[index] = PublishError(f"{message.topic!r} cannot be a topic's name")
                elif message.topic in unknown:
                    results[index] = UnknownTopic(f"the topic {message.topic!r} does not exist")
                else:
                    results[index] = failure
        return results

    async def subscribe(self, subscription: Subscription) -> "SQLiteReceiver":
        """Join a group."""
        for name in (subscription.topic, subscription.group):
            _check_name(name)
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
        return SQLiteReceiver(worker, member)

    async def lag(self, topic: str, group: str) -> int | None:
        """How many messages the group has not settled."""
        if not (_encodable(topic) and _encodable(group)):
            return 0
        return await self._opened.read(lambda store: store.lag(topic, group))

    def _leave_again(self, worker: "_Worker", joined: "asyncio.Future[Member]") -> None:
        """Undo a subscription whose caller was cancelled."""
        self._undoing.discard(joined)
        if joined.cancelled() or joined.exception() or worker.stopping:
            return
        member = joined.result()
        member.closed = True
        _ignore_failure(worker.write(lambda store: store.leave(member)))

    @property
    def _opened(self) -> "_Worker":
        if self._worker is None:
            raise ClosedError("the SQLite broker is not open")
        return self._worker


class SQLiteReceiver:
    """One member of a group. A delivery's token is its offset."""

    def __init__(self, worker: "_Worker", member: Member) -> None:
        self._worker = worker
        self._member = member
        self._abandoned: asyncio.Future[Page | None] | None = None

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """Up to `limit` messages, as soon as there is one."""
        if limit < 1:
            return []
        if self._abandoned is not None:
            await asyncio.wait(
                [self._abandoned]
            )  # what it took goes back first, or a lane would be out of order
            self._abandoned = None
        request = _Request(self._member, limit, wait)
        self._worker.submit(request)
        try:
            page = await asyncio.shield(request.future)
        except asyncio.CancelledError:
            self._abandoned = request.future
            request.abandoned = True
            request.future.add_done_callback(self._give_back)
            self._worker.nudge()
            raise
        if page is None:
            return []
        deliveries = _unpack(self._member.topic_name, page)
        self._member.held += len(deliveries)
        return deliveries

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Settle in one transaction, on disk when this returns."""
        now, member = time.time(), self._member
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
        await self._worker.write(lambda store: store.renew(member, time.time()), durable=False)

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
        now, member = time.time(), self._member
        offsets = _numbers(page.offsets)
        attempts = _attempts(page, len(offsets))
        back = [(offset, now, attempt, False) for offset, attempt in zip(offsets, attempts, strict=True)]
        _ignore_failure(self._worker.write(lambda store: store.settle(member, [], back), durable=False))


# The thread


class _Job(Generic[T]):
    """Work for the thread: inside the next transaction, or before it if it only reads."""

    __slots__ = ("durable", "future", "reads", "work")

    def __init__(
        self,
        work: Callable[[Store], T],
        future: "asyncio.Future[T] | None",
        *,
        durable: bool,
        reads: bool = False,
    ) -> None:
        self.work = work
        self.future = future  # None: the thread's own housekeeping
        self.durable = durable
        self.reads = reads


class _Request:
    """A call of `receive`, which the thread keeps until there is something, or its time is over."""

    __slots__ = ("abandoned", "deadline", "future", "limit", "look_at", "member")

    def __init__(self, member: Member, limit: int, wait: float) -> None:
        self.member = member
        self.limit = limit
        self.deadline = time.monotonic() + wait
        self.look_at: float | None = 0.0
        self.abandoned = False
        self.future: asyncio.Future[Page | None] = asyncio.get_running_loop().create_future()


_Outcome: TypeAlias = tuple["asyncio.Future[Any] | None", Any, Exception | None]


class _Worker:
    """The thread, its connection, and what waits for it.

    It takes all that waits and commits it as one: however many publish and settle at a time, they share one fsync.
    """

    def __init__(self, path: Path, options: SQLiteOptions) -> None:
        self.stopping = False
        self._path = path.absolute()
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[_Job[Any] | _Request | None] = queue.SimpleQueue()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._main, name="things-kit-sqlite", daemon=True)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._doing: list[_Job[Any]] = []
        self._waiting: list[_Request] = []
        self._outcomes: list[_Outcome] = []
        self._ephemeral: tuple[Member, ...] = ()
        self._seen = -1
        self._log = f"{self._path}-wal"
        self._seen_stamp = (0, 0)
        self._full = False
        self._sweep_at = 0.0
        self._sweeping = True
        self._beat_at = 0.0

    # On the event loop

    async def start(self) -> None:
        """Begin; returns once the file is open."""
        self._thread.start()
        try:
            await asyncio.shield(self._opened)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Finish what was asked for, close the file and end the thread; stopping again is fine."""
        self.stopping = True
        self.nudge()
        await asyncio.shield(self._ended)
        self._thread.join()  # its last act was to say that it ends

    def write(self, work: Callable[[Store], T], *, durable: bool = True) -> "asyncio.Future[T]":
        future: asyncio.Future[T] = self._loop.create_future()
        self.submit(_Job(work, future, durable=durable))
        return future

    def read(self, work: Callable[[Store], T]) -> "asyncio.Future[T]":
        future: asyncio.Future[T] = self._loop.create_future()
        self.submit(_Job(work, future, durable=False, reads=True))
        return future

    def submit(self, job: "_Job[Any] | _Request") -> None:
        if self.stopping:
            raise ClosedError("the SQLite broker was closed")
        self._inbox.put(job)

    def nudge(self) -> None:
        self._inbox.put(None)

    def keep_alive(self, member: Member) -> None:
        """Renew this receiver's lease from the thread, whether it holds anything or not."""
        self._ephemeral = (*self._ephemeral, member)
        self.nudge()

    def forget(self, member: Member) -> None:
        """Stop serving a receiver that is being closed."""
        self._ephemeral = tuple(known for known in self._ephemeral if known is not member)
        self.nudge()

    def _deliver(self, outcomes: list[_Outcome]) -> None:
        for future, result, error in outcomes:
            if future is None or future.done():
                continue  # whoever asked was cancelled
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    # In the thread

    def _main(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = open_database(self._path)
            self._identity = self._path.stat().st_ino
            self._store = Store(connection, lease=self._options.lease, retain=self._options.retain)
            self._post([(self._opened, None, None)])
            self._work()
        except BaseException as error:  # noqa: BLE001 - nobody may wait for ever for a thread that is gone
            failure = explain(error, self._path, opening=True)
            self._post([(self._opened, None, failure)])
            self._fail_all(failure)
        finally:
            if connection is not None:
                connection.close()
            self._fail_all(ClosedError("the SQLite broker was closed"))
            self._post([(self._ended, None, None)])

    def _post(self, outcomes: list[_Outcome]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, outcomes)
        except RuntimeError:  # the loop is closed, so nobody waits
            self.stopping = True

    def _fail_all(self, failure: Exception) -> None:
        self.stopping = True
        left: list[_Job[Any] | _Request] = [*self._doing, *self._waiting]
        self._waiting = []
        while not self._inbox.empty():
            job = self._inbox.get()
            if job is not None:
                left.append(job)
        self._post(self._outcomes + [(job.future, None, failure) for job in left])
        self._outcomes = []

    def _work(self) -> None:
        while not (self.stopping and self._inbox.empty()):
            jobs, requests = self._gather()
            self._tend(jobs)
            self._doing = jobs
            self._waiting += requests
            for job in jobs:
                if job.reads:
                    self._read(job)
            writes = [job for job in jobs if not job.reads]
            promising = self._promising()
            if writes or promising:
                self._commit(writes, promising)
            self._let_go()
            if self._outcomes:
                outcomes, self._outcomes = self._outcomes, []
                self._post(outcomes)

    def _gather(self) -> tuple[list[_Job[Any]], list[_Request]]:
        jobs: list[_Job[Any]] = []
        requests: list[_Request] = []
        try:
            item = self._next()
            while True:
                if isinstance(item, _Request):
                    requests.append(item)
                elif item is not None:
                    jobs.append(item)
                if len(jobs) >= GROUP or self._inbox.empty():
                    break
                item = self._inbox.get_nowait()
        except queue.Empty:
            pass
        return jobs, requests

    def _next(self) -> "_Job[Any] | _Request | None":
        """The next item; raises queue.Empty when there is something else to do."""
        moment = self._next_moment()
        if not self._waiting:
            return self._inbox.get(timeout=None if moment is None else max(0.0, moment - time.monotonic()))
        # What stands in this loop is what idle waiting costs. A look at the log's stamp costs a third of a PRAGMA; it
        # may miss a commit in the very tick of the clock that it has seen, hence the real look every few turns.
        for _ in range(STAMPS):
            now = time.monotonic()
            patience = POLL if moment is None else min(POLL, moment - now)
            if patience <= 0:
                break
            try:
                return self._inbox.get(timeout=patience)
            except queue.Empty:
                if self._log_stamp() != self._seen_stamp:
                    break
        return self._inbox.get_nowait()

    def _next_moment(self) -> float | None:
        """When the thread has something to do by itself; None: never, so that it may sleep until it is asked."""
        if self._store.touched:
            return 0.0
        moments = [self._beat_at] if self._ephemeral else []
        if self._sweeping:
            moments.append(self._sweep_at)
        if self._waiting:
            ahead = time.monotonic() - time.time()
            moments += [request.deadline for request in self._waiting]
            moments += [request.look_at + ahead for request in self._waiting if request.look_at is not None]
        return min(moments, default=None)

    def _log_stamp(self) -> tuple[int, int]:
        try:
            stat = os.stat(self._log)  # noqa: PTH116 - half the price of Path.stat, a hundred times a second
        except OSError:
            return 0, 0
        return stat.st_mtime_ns, stat.st_size

    def _tend(self, jobs: list[_Job[Any]]) -> None:
        """Add what is to be done from time to time."""
        now = time.monotonic()
        members = self._ephemeral
        if members and now >= self._beat_at:
            self._beat_at = now + self._options.lease / 3
            jobs.append(_Job(lambda store: store.keep_alive(members), None, durable=False))
        if now >= self._sweep_at and (jobs or self._waiting or self._sweeping):
            self._sweep_at = now + SWEEP_EVERY
            jobs.append(_Job(self._sweep, None, durable=False))

    def _sweep(self, store: Store) -> None:
        self._sweeping = store.sweep(time.time())
        if self._sweeping:
            self._sweep_at = time.monotonic() + SWEEP_PAUSE

    def _promising(self) -> list[_Request]:
        """The waiting requests for which there may be something, which a look without a write transaction tells."""
        if not self._waiting:
            return []
        try:
            self._seen_stamp = self._log_stamp()
            seen = self._store.connection.execute("PRAGMA data_version").fetchone()[0]
            if (
                seen != self._seen
            ):  # another process has written; noted before looking, so that nothing is missed
                self._seen = seen
                for request in self._waiting:
                    request.look_at = 0.0
            self._wake_touched()
            now = time.time()
            due = [
                request for request in self._waiting if request.look_at is not None and request.look_at <= now
            ]
            return [request for request in due if self._looks_good(request, now)]
        except sqlite3.Error as error:
            self._outcomes += [
                (request.future, None, explain(error, self._path)) for request in self._waiting
            ]
            self._waiting = []
            return []

    def _wake_touched(self) -> list[_Request]:
        topics, self._store.touched = self._store.touched, set()
        woken = [request for request in self._waiting if request.member.topic in topics]
        for request in woken:
            request.look_at = 0.0
        return woken

    def _looks_good(self, request: _Request, now: float) -> bool:
        if request.abandoned or request.member.closed:
            return False
        try:
            prospect = self._store.prospect(request.member, now)
        except ConnectionLost as lost:
            self._waiting.remove(request)
            self._outcomes.append((request.future, None, lost))
            return False
        request.look_at = prospect.later
        return prospect.now

    def _let_go(self) -> None:
        """End the waiting of those whose time is over, or who are not interested any more."""
        now = time.monotonic()
        kept = []
        for request in self._waiting:
            over = request.deadline <= now and request.look_at != 0.0
            if over or request.abandoned or request.member.closed:
                self._outcomes.append((request.future, None, None))
            else:
                kept.append(request)
        self._waiting = kept

    def _read(self, job: _Job[Any]) -> None:
        try:
            self._check_file()
            self._outcomes.append((job.future, job.work(self._store), None))
        except Exception as error:  # noqa: BLE001 - it reaches whoever asked
            self._outcomes.append((job.future, None, explain(error, self._path)))

    def _commit(self, writes: list[_Job[Any]], requests: list[_Request]) -> None:
        """Do all in one transaction. A failure of one is its own; a failure of the transaction is everybody's."""
        try:
            outcomes = self._transaction(writes, requests)
        except Exception as error:  # noqa: BLE001 - it reaches whoever asked
            self._roll_back()
            if primary_code(error) == sqlite3.SQLITE_FULL and len(writes) + len(requests) > 1:
                for job in writes:  # what deletes, or is smaller, may still find its place
                    self._commit([job], [])
                for request in requests:
                    self._commit([], [request])
                return
            futures = [*(job.future for job in writes), *(request.future for request in requests)]
            outcomes = [(future, None, explain(error, self._path)) for future in futures]
        settled = {id(future) for future, _, _ in outcomes}
        self._waiting = [request for request in self._waiting if id(request.future) not in settled]
        self._outcomes += outcomes

    def _transaction(self, writes: list[_Job[Any]], requests: list[_Request]) -> list[_Outcome]:
        self._check_file()
        if self._store.connection.in_transaction:
            self._store.connection.execute(
                "ROLLBACK"
            )  # it failed the last time; if it does again, that is said
        self._be_durable(any(job.durable for job in writes))
        begin(self._store.connection, LOCK_PATIENCE, lambda: self.stopping)
        alone = len(writes) + len(requests) == 1 and not self._waiting
        outcomes = [self._attempt(job.work, job.future, alone=alone) for job in writes]
        now = time.time()
        if writes:
            woken = [request for request in self._wake_touched() if request not in requests]
            requests += [request for request in woken if self._looks_good(request, now)]
        for request in requests:
            if request.abandoned or request.member.closed:
                continue
            outcome = self._attempt(functools.partial(_serve, request, now), request.future, alone=alone)
            if outcome[1] is not None or outcome[2] is not None:
                outcomes.append(outcome)
        self._store.connection.execute("COMMIT")
        return outcomes

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._store.connection.in_transaction:
                self._store.connection.execute("ROLLBACK")

    def _attempt(
        self, work: Callable[[Store], T], future: "asyncio.Future[T] | None", *, alone: bool
    ) -> _Outcome:
        connection = self._store.connection
        if alone:
            return future, work(self._store), None
        connection.execute("SAVEPOINT attempt")
        try:
            result = work(self._store)
        except Exception as error:
            if not connection.in_transaction:
                raise  # SQLite has rolled everything back
            connection.execute("ROLLBACK TO attempt")
            connection.execute("RELEASE attempt")
            return future, None, explain(error, self._path)
        connection.execute("RELEASE attempt")
        return future, result, None

    def _be_durable(self, durable: bool) -> None:
        """Sync only what was promised: a lease that a power failure undoes is one that nobody holds any more."""
        full = durable and self._options.synchronous == "full"
        if full != self._full:
            self._store.connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self._full = full

    def _check_file(self) -> None:
        """Confirm nothing into a file that has been deleted or replaced while it was open."""
        try:
            same = self._path.stat().st_ino == self._identity
        except OSError:
            same = False
        if not same:
            raise ConnectionLost(f"{self._path} was moved, deleted or replaced while it was open")


def _serve(request: _Request, now: float, store: Store) -> Page | None:
    page, more = store.hand_out(request.member, request.limit, now)
    if more:
        request.look_at = 0.0
    return page


def _ignore_failure(future: "asyncio.Future[Any]") -> None:
    """Nobody awaits this; if it fails, the lease brings the messages back."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())


# Packing

_to_json: Final = msgspec.json.encode
_numbers: Final = msgspec.json.Decoder(list[int]).decode
_lengths: Final = msgspec.json.Decoder(list[int | None]).decode
_texts: Final = msgspec.json.Decoder(list[str | None]).decode
_times: Final = msgspec.json.Decoder(list[datetime | None]).decode  # five times as fast as adding a timedelta
_headers: Final = msgspec.json.Decoder(list[dict[str, str]]).decode


def _pack(message: Message, now: int, most: int) -> Row:
    headers: str | None = None
    target: str | None = None
    key = message.key
    if not isinstance(message.value, bytes) or not isinstance(key, bytes | None):
        raise PublishError("a message's value and key are bytes")
    size = len(message.value) + (len(key) if key else 0)
    try:
        if message.headers:
            if not all(isinstance(text, str) for pair in message.headers.items() for text in pair):
                raise PublishError("the names and values of headers are strings")
            packed = _to_json(message.headers)
            size += len(packed)
            headers = packed.decode()
            target = message.headers.get(REPLAY_GROUP)
        if message.id is not None and not message.id.isascii():
            message.id.encode()
    except UnicodeEncodeError as error:
        raise PublishError("a header or the id holds half a surrogate pair, which is no text") from error
    if size > most:
        raise MessageTooLarge(f"the message has {size} bytes; this broker takes {most}")
    return key, message.value, headers, message.id, _pack_time(message.timestamp), now, target


def _pack_time(stamp: datetime | None) -> str | None:
    if stamp is None:
        return None
    try:
        return (stamp if stamp.tzinfo is UTC else stamp.astimezone(UTC)).isoformat()
    except (OverflowError, ValueError) as error:
        raise PublishError(f"the timestamp {stamp!r} is no time in UTC") from error


def _unpack(topic: str, page: Page) -> list[Delivery]:
    offsets = _numbers(page.offsets)
    return [
        Delivery(Message(topic, value, key, headers, None, offset, timestamp, number, attempt), offset)
        for offset, key, value, headers, timestamp, number, attempt in zip(
            offsets,
            _slices(page.keys, _lengths(page.key_lengths)),
            _slices(page.values, _lengths(page.value_lengths)),
            _headers(page.headers),
            _times(page.times),
            _texts(page.ids),
            _attempts(page, len(offsets)),
            strict=True,
        )
    ]


def _attempts(page: Page, count: int) -> list[int]:
    return [1] * count if page.attempts is None else _numbers(page.attempts)


def _slices(joined: bytes | None, lengths: list[int | None]) -> list[Any]:
    """Take apart what SQLite has joined; None where there was none."""
    whole = joined or b""
    ends = accumulate((length or 0 for length in lengths), initial=0)
    parts = [whole[start:end] for start, end in pairwise(ends)]
    if None in lengths:
        return [None if length is None else part for length, part in zip(lengths, parts, strict=True)]
    return parts


def _encodable(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _check_name(name: str) -> None:
    if not _encodable(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a topic or group: it is empty or holds half a surrogate pair"
        )


def _refusal(error: Exception) -> Exception:
    """What became of a send that failed: a full disk is final, other losses of the file are worth another try."""
    if isinstance(error, MessageTooLarge):
        return error
    if primary_code(error.__cause__ or error) == sqlite3.SQLITE_FULL:
        refused = PublishError(f"{error}; nothing of this batch was stored")
        refused.__cause__ = error.__cause__
        return refused
    raise error
