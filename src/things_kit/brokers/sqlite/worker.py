"""The thread that does all database work of one driver, and everything that waits for it."""

import asyncio
import contextlib
import functools
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from things_kit.brokers.sqlite.admin import keep_alive, reap, sweep
from things_kit.brokers.sqlite.errors import explain, primary_code
from things_kit.brokers.sqlite.lending import Page, hand_out, prospect
from things_kit.brokers.sqlite.schema import begin, open_database
from things_kit.brokers.sqlite.store import Member, Store
from things_kit.engine.clock import steady
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.held import is_held
from things_kit.messaging.errors import BrokerUnavailable, ClosedError

T = TypeVar("T")

POLL: Final = 0.01
"""Seconds between two looks whether another process has committed, while somebody waits."""

LOCK_PATIENCE: Final = 5.0
SWEEP_EVERY: Final = 30.0
SWEEP_PAUSE: Final = 0.05
INSIST_EVERY: Final = 0.5
GROUP: Final = 500


class Job(msgspec.Struct, Generic[T], eq=False, kw_only=True):
    """Work for the thread: inside the next transaction, or before it if it only reads.

    Without a `future` it is the thread's own housekeeping. What `insists` is tried again where the file could not be written,
    whoever waits for it: otherwise only a lease that runs out would do the same.
    """

    work: Callable[[Store], T]
    future: Any = None
    durable: bool = False
    reads: bool = False
    insists: bool = False


class Request(msgspec.Struct, eq=False):
    """A call of `fetch`, which the thread keeps until there is something, or its time is over."""

    member: Member
    limit: int
    deadline: float
    future: Any
    look_at: float | None = 0.0
    abandoned: bool = False


Outcome: TypeAlias = tuple["asyncio.Future[Any] | None", Any, Exception | None]


class Worker:
    """The thread, its connection, and what waits for it.

    It takes all that waits and commits it as one: however many publish and settle at a time, they share one fsync.
    """

    def __init__(
        self, path: Path, *, schema: str, lease: float, retain: float, durable: bool, creates: bool
    ) -> None:
        self.stopping = False
        self._path = path.absolute()
        self._place = str(path.resolve())
        self._schema = schema
        self._creates = creates
        self._lease = lease
        self._retain = retain
        self._fsync = durable
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Job[Any] | Request | None] = queue.SimpleQueue()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._main, name="things-kit-sqlite", daemon=True)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._doing: list[Job[Any]] = []
        self._waiting: list[Request] = []
        self._outcomes: list[Outcome] = []
        self._ephemeral: tuple[Member, ...] = ()
        self._again: list[Job[Any]] = []
        self._again_at = 0.0
        self._seen = -1
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

    def write(
        self, work: Callable[[Store], T], *, durable: bool = True, insists: bool = False
    ) -> "asyncio.Future[T]":
        """Do this inside the next transaction; `durable` says that its result may be promised to somebody.

        What `insists` is done later if that failed, as long as this worker lives.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self.submit(Job(work=work, future=future, durable=durable, insists=insists))
        return future

    def read(self, work: Callable[[Store], T]) -> "asyncio.Future[T]":
        """Do this, which only reads, outside of a transaction."""
        future: asyncio.Future[T] = self._loop.create_future()
        self.submit(Job(work=work, future=future, reads=True))
        return future

    def request(self, member: Member, limit: int, wait: float) -> Request:
        """Hand messages out to this receiver as soon as there are any."""
        request = Request(member, limit, time.monotonic() + wait, self._loop.create_future())
        ignore_failure(request.future)  # a call that was cancelled may never ask for it
        self.submit(request)
        return request

    def submit(self, job: "Job[Any] | Request") -> None:
        """Hand it to the thread. Raises ClosedError."""
        if self.stopping:
            raise ClosedError("the SQLite broker was closed")
        self._inbox.put(job)

    def nudge(self) -> None:
        """Let the thread look around."""
        self._inbox.put(None)

    def keep_alive(self, member: Member) -> None:
        """Renew this receiver's lease from the thread, whether it holds anything or not."""
        self._ephemeral = (*self._ephemeral, member)
        self.nudge()

    def forget(self, member: Member) -> None:
        """Stop serving a receiver that is being closed."""
        self._ephemeral = tuple(known for known in self._ephemeral if known is not member)
        self.nudge()

    def _deliver(self, outcomes: list[Outcome]) -> None:
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
        working = False
        try:
            connection = open_database(self._path, self._schema, creates=self._creates)
            self._identity = self._path.stat().st_ino
            self._store = Store(connection, schema=self._schema, lease=self._lease, retain=self._retain)
            self._post([(self._opened, None, None)])
            working = True
            self._work()
        except BaseException as error:  # noqa: BLE001 - nobody may wait for ever for a thread that is gone
            failure = explain(error, self._path, opening=True)
            if working:  # a thread that is gone tries nothing again
                failure = BrokerUnavailable(str(failure))
                failure.__cause__ = error
            self._post([(self._opened, None, failure)])
            self._fail_all(failure)
        finally:
            if connection is not None:
                connection.close()
            self._fail_all(ClosedError("the SQLite broker was closed"))
            self._post([(self._ended, None, None)])

    def _post(self, outcomes: list[Outcome]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, outcomes)
        except RuntimeError:  # the loop is closed, so nobody waits
            self.stopping = True

    def _fail_all(self, failure: Exception) -> None:
        self.stopping = True
        left: list[Job[Any] | Request] = [*self._doing, *self._waiting]
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

    def _gather(self) -> tuple[list[Job[Any]], list[Request]]:
        jobs: list[Job[Any]] = []
        requests: list[Request] = []
        try:
            item = self._next()
            while True:
                if isinstance(item, Request):
                    requests.append(item)
                elif item is not None:
                    jobs.append(item)
                if len(jobs) >= GROUP or self._inbox.empty():
                    break
                item = self._inbox.get_nowait()
        except queue.Empty:
            pass
        return jobs, requests

    def _next(self) -> "Job[Any] | Request | None":
        """The next item; raises queue.Empty when there is something else to do."""
        moment = self._next_moment()
        if not self._waiting:
            return self._inbox.get(timeout=None if moment is None else max(0.0, moment - time.monotonic()))
        while True:  # what stands in this loop is what idle waiting costs
            now = time.monotonic()
            patience = POLL if moment is None else min(POLL, moment - now)
            if patience <= 0:
                return self._inbox.get_nowait()
            try:
                return self._inbox.get(timeout=patience)
            except queue.Empty:
                if self._version() != self._seen:
                    raise

    def _next_moment(self) -> float | None:
        """When the thread has something to do by itself; None: never, so that it may sleep until it is asked."""
        if self._store.touched:
            return 0.0
        moments = [self._beat_at] if self._ephemeral else []
        if self._again:
            moments.append(self._again_at)
        if self._sweeping:
            moments.append(self._sweep_at)
        if self._waiting:
            ahead = time.monotonic() - steady()
            moments += [request.deadline for request in self._waiting]
            moments += [request.look_at + ahead for request in self._waiting if request.look_at is not None]
        return min(moments, default=None)

    def _version(self) -> int:
        """Changes when another connection has committed."""
        return int(self._store.connection.execute("PRAGMA data_version").fetchone()[0])

    def _tend(self, jobs: list[Job[Any]]) -> None:
        """Add what is to be done from time to time."""
        now = time.monotonic()
        if self._again and now >= self._again_at:
            jobs += self._again
            self._again = []
        members = self._ephemeral
        if members and now >= self._beat_at:
            self._beat_at = now + self._lease / 3
            jobs.append(Job(work=lambda store: keep_alive(store, members)))
        if now >= self._sweep_at and (jobs or self._waiting or self._sweeping):
            self._sweep_at = now + SWEEP_EVERY
            jobs.append(Job(work=self._sweep))

    def _sweep(self, store: Store) -> None:
        now = steady()
        reap(store, now)
        self._sweeping = sweep(store, now)
        if self._sweeping:
            self._sweep_at = time.monotonic() + SWEEP_PAUSE

    def _promising(self) -> list[Request]:
        """The waiting requests for which there may be something, which a look without a write transaction tells."""
        if not self._waiting:
            return []
        try:
            seen = self._version()
            if (
                seen != self._seen
            ):  # another process has written; noted before looking, so that nothing is missed
                self._seen = seen
                for request in self._waiting:
                    request.look_at = 0.0
            self._wake_touched()
            now = steady()
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

    def _wake_touched(self) -> list[Request]:
        topics, self._store.touched = self._store.touched, set()
        woken = [request for request in self._waiting if request.member.topic in topics]
        for request in woken:
            request.look_at = 0.0
        return woken

    def _looks_good(self, request: Request, now: float) -> bool:
        if request.abandoned or request.member.closed:
            return False
        try:
            found = prospect(self._store, request.member, now)
        except ConnectionLost as lost:
            self._waiting.remove(request)
            self._outcomes.append((request.future, None, lost))
            return False
        request.look_at = found.later
        return found.now

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

    def _read(self, job: Job[Any]) -> None:
        try:
            self._check_file()
            self._outcomes.append((job.future, job.work(self._store), None))
        except Exception as error:  # noqa: BLE001 - it reaches whoever asked
            self._outcomes.append((job.future, None, explain(error, self._path)))

    def _commit(self, writes: list[Job[Any]], requests: list[Request]) -> None:
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
            if again := [Job(work=job.work, insists=True) for job in writes if job.insists]:
                self._again += again
                self._again_at = time.monotonic() + INSIST_EVERY
            futures = [*(job.future for job in writes), *(request.future for request in requests)]
            outcomes = [(future, None, explain(error, self._path)) for future in futures]
        settled = {id(future) for future, _, _ in outcomes}
        self._waiting = [request for request in self._waiting if id(request.future) not in settled]
        self._outcomes += outcomes

    def _transaction(self, writes: list[Job[Any]], requests: list[Request]) -> list[Outcome]:
        self._check_file()
        if self._store.connection.in_transaction:
            self._store.connection.execute(
                "ROLLBACK"
            )  # it failed the last time; if it does again, that is said
        self._be_durable(any(job.durable for job in writes))
        begin(self._store.connection, LOCK_PATIENCE, lambda: self.stopping, lambda: is_held(self._place))
        alone = len(writes) + len(requests) == 1 and not self._waiting
        outcomes = [self._attempt(job.work, job.future, alone=alone) for job in writes]
        now = steady()
        if writes:
            woken = [request for request in self._wake_touched() if request not in requests]
            requests = [*requests, *(request for request in woken if self._looks_good(request, now))]
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
    ) -> Outcome:
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
        full = durable and self._fsync
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


def _serve(request: Request, now: float, store: Store) -> Page | None:
    page, more = hand_out(store, request.member, request.limit, now)
    if more:
        request.look_at = 0.0
    return page


def ignore_failure(future: "asyncio.Future[Any]") -> None:
    """Nobody need await this; if it fails, the lease brings the messages back."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
