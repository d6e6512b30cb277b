"""The fixed set of workers that call the handler, and the one timer that watches all of them."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import Context, ContextVar, copy_context
from enum import Enum, auto
from itertools import cycle
from typing import Any, Final, TypeAlias

from things_kit.engine.driver import Delivery, Which
from things_kit.engine.pipeline import Steps
from things_kit.engine.state import HANDLING
from things_kit.engine.threads import HandlerThreads, threads
from things_kit.engine.unrun import refuse_unrun
from things_kit.messaging.errors import ThingsKitError
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLY_TO

log = logging.getLogger("things_kit.consumer")

SLICE: Final = 0.005
"""Seconds for which a worker may go on with handlers that never wait before the loop gets its turn."""

LOOKS: Final = (False,) * 15 + (True,)
"""After which messages a worker looks at the clock: that costs as much as all else that it does for one."""

GRACE: Final = 1.5
"""Seconds that a cancelled handler has to clean up when the consumer stops."""


Prepare: TypeAlias = Callable[[Delivery], Awaitable[bool]]
"""Makes ready for handling a delivery alone; False if it is not to be handled here after all."""


class Cancelled(Enum):
    """Why we cancelled a handler."""

    TIMEOUT = auto()
    STOP = auto()


class Worker:
    """One of the handler calls that run at once: what it has in hand, and since when."""

    __slots__ = ("cancelled", "context", "deliveries", "gathered", "hung", "present", "started", "task")

    def __init__(self) -> None:
        self.deliveries: tuple[Delivery, ...] | list[Delivery] | Delivery | None = None
        self.gathered: list[Delivery] = []  # for the next call, not begun
        self.started = 0.0
        self.cancelled: Cancelled | None = None
        self.hung = False
        self.context: Context  # as every handler finds it
        self.present: Context  # as the last one left it
        self.task: asyncio.Task[None]

    def in_hand(self) -> Iterator[Delivery]:
        """The deliveries that are being handled."""
        if isinstance(self.deliveries, Delivery):
            yield self.deliveries
        elif self.deliveries:
            yield from self.deliveries

    @property
    def changed(self) -> bool:
        """Whether a handler has left context variables otherwise than it found them."""
        try:
            return self.present != self.context
        except Exception:  # noqa: BLE001 - two values that cannot be compared are not the same
            return True

    def cancel(self, why: Cancelled) -> None:
        """Cancel the handler; again only where it ignored its timeout and the consumer stops."""
        if self.cancelled is not why:
            self.cancelled = why
            self.task.cancel()

    def uncancel(self) -> None:
        """The cancellation has reached the handler, or came too late for it."""
        self.cancelled = None
        while self.task.cancelling():
            self.task.uncancel()


class Workers:
    """Takes deliveries that are ready and handles each, `concurrency` at once.

    What the handler returned from is done, for the delivery's inbox; failures go to its outcomes. What is isolated is
    handled while nothing else is.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        timeout: float | None,
        starved: Callable[[], None],
        broke: Callable[[BaseException], None],
        name: str,
    ) -> None:
        self.ready: deque[Delivery] = deque()
        self._concurrency = concurrency
        self._timeout = timeout
        self._starved = starved
        self._broke = broke
        self._name = name
        self._idle: deque[asyncio.Future[None]] = deque()
        self._workers: list[Worker] = []
        self._threads = HandlerThreads(f"{name} handler")
        self._watch: asyncio.TimerHandle | None = None
        self._alone: deque[tuple[Delivery, Prepare]] = deque()
        self._solitary: Delivery | None = None
        self._paused = self._stopping = False
        self._held = False  # whether anything keeps workers from what is ready

    def start(self, steps: Steps) -> None:
        """Start the workers, which call these with each message."""
        self._handle: Callable[[Message], Awaitable[object]] = steps.plain
        self._request: Callable[[Message], Awaitable[object]] = steps.request
        for number in range(self._concurrency):
            worker = Worker()
            worker.context = copy_context()
            worker.context.run(threads.set, (self._threads, worker))
            self._workers.append(worker)
            self._begin(worker, f"{self._name} worker {number}")
        if self._timeout is not None:
            self._watch = asyncio.get_running_loop().call_later(self._timeout, self._check)

    def _begin(self, worker: Worker, name: str) -> None:
        """A task of its own context: it is the worker until a handler has changed a context variable."""
        worker.present = worker.context.copy()
        worker.task = asyncio.create_task(self._work(worker), name=name, context=worker.present)
        worker.task.add_done_callback(self._ended)

    def wake(self) -> None:
        """Deliveries have become ready. One worker begins, and the others if it has left anything when the loop goes on."""
        if self.ready and self._idle:
            self._rouse(1)
            if self._idle and len(self.ready) > 1:
                asyncio.get_running_loop().call_soon(self._wake_others)

    def _wake_others(self) -> None:
        self._rouse(len(self.ready))  # nothing, where handlers never wait: one worker took it all

    def _rouse(self, most: int) -> None:
        idle = self._idle
        while idle and most > 0:
            waiter = idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                most -= 1

    def pause(self, paused: bool) -> None:
        """Begin nothing while this is set."""
        self._paused = paused
        self._look()
        if not paused:
            self._rouse(len(self._idle))

    def isolate(self, delivery: Delivery, prepare: Prepare, *, first: bool = False) -> None:
        """Handle it while nothing else is being handled, if `prepare` still says so when its turn has come."""
        (self._alone.appendleft if first else self._alone.append)((delivery, prepare))
        self._look()
        self._rouse(len(self._idle))

    def drop(self, which: Which) -> list[Delivery]:
        """Take these out of what is to be handled alone; returns them."""
        dropped = [delivery for delivery, _ in self._alone if which(delivery)]
        self._alone = deque(entry for entry in self._alone if not which(entry[0]))
        self._look()
        return dropped

    def _look(self) -> None:
        """See whether workers may take what is ready."""
        self._held = self._stopping or self._paused or bool(self._alone) or self._solitary is not None

    @property
    def active(self) -> int:
        """How many deliveries are ready, gathered or being handled."""
        return len(self.ready) + len(self._alone) + sum(self._count(worker) for worker in self._workers)

    @staticmethod
    def _count(worker: Worker) -> int:
        deliveries = worker.deliveries
        if isinstance(deliveries, Delivery):
            return 1
        return len(deliveries or ()) + len(worker.gathered)

    @property
    def starving(self) -> bool:
        """Whether a worker has nothing to do, not even what has just become ready."""
        return bool(self._idle)

    @property
    def provided(self) -> bool:
        """Whether every worker has, or finds, a message, and another one when it is done."""
        return len(self.ready) > len(self._idle)

    @property
    def ended(self) -> bool:
        """Whether no handler runs any more, not even one that ignored its cancellation."""
        return all(worker.task.done() for worker in self._workers)

    @property
    def busy(self) -> bool:
        """Whether any handler runs."""
        return any(worker.deliveries for worker in self._workers)

    def hanging(self) -> int:
        """How many workers wait for a handler that overran its timeout and does not end."""
        now = asyncio.get_running_loop().time()
        return sum(
            worker.hung
            or (worker.cancelled is Cancelled.TIMEOUT and now - worker.started > 2 * (self._timeout or 0))
            for worker in self._workers
        )

    def owns(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this task is one of the workers."""
        return any(worker.task is task for worker in self._workers)

    def halt(self) -> None:
        """Begin nothing more."""
        self._stopping = self._held = True
        self.ready.clear()
        self._alone.clear()
        self._rouse(len(self._idle))

    async def stop(self, drain: float) -> None:
        """Begin nothing more, give what has begun `drain` seconds to finish, then cancel it."""
        self.halt()
        if self._workers:
            await asyncio.wait({worker.task for worker in self._workers}, timeout=drain)
        late = [worker for worker in self._workers if not worker.task.done()]
        for worker in late:
            worker.cancel(Cancelled.STOP)
        if late:
            _, stubborn = await asyncio.wait({worker.task for worker in late}, timeout=GRACE)
            for task in stubborn:
                log.warning("%s: a handler ignores its cancellation; it is left behind", task.get_name())
        if self._watch is not None:
            self._watch.cancel()
        self._threads.close()

    async def _work(self, worker: Worker) -> None:
        while not self._stopping:
            if self._held and self._alone and not self._paused:
                await self._solitude(worker)
            elif self._held or not self.ready:
                await self._rest()
            else:
                await self._busy_period(worker)
            if worker.changed and not self._stopping:  # the next message must not see what this one has set
                self._begin(worker, worker.task.get_name())
                return

    async def _rest(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        self._starved()
        await waiter

    async def _solitude(self, worker: Worker) -> None:
        """Handle the next that is to be alone, if nothing else is being handled; else wait for that."""
        if self._solitary is not None or self.busy:
            await self._rest()
            return
        delivery, prepare = self._alone.popleft()
        self._solitary = delivery
        try:
            if await prepare(delivery):
                await self._handle_each(worker, deque((delivery,)))
        finally:
            self._solitary = None
            self._look()
            self._rouse(len(self._idle))

    async def _busy_period(self, worker: Worker) -> None:
        """Handle what is ready, until that is nothing or a handler has changed a context variable."""
        await self._handle_each(worker, self.ready)

    async def _handle_each(self, worker: Worker, ready: deque[Delivery]) -> None:
        """Handle these one by one. This loop is the good path: every line in it is paid for by each message.

        It ends when a handler has changed a context variable, which no other message must see.
        """
        handle, request, asks, timed = self._handle, self._request, REPLY_TO, self._timeout is not None
        time, context, present = asyncio.get_running_loop().time, worker.context, worker.present
        cancelling = worker.task.cancelling
        turn_ends = time() + SLICE
        for look in cycle(LOOKS):
            if not ready or (self._held and ready is self.ready):
                break
            worker.deliveries = delivery = ready.popleft()
            delivery.state = HANDLING
            if timed:
                worker.started = time()
            try:
                message = delivery.message
                if (answer := await (request if asks in message.headers else handle)(message)) is not None:
                    refuse_unrun(answer, "the handler")
            except BaseException as error:  # noqa: BLE001 - every exception is an answer
                await self._answer(worker, delivery, error)
            else:
                delivery.inbox.done(delivery)
                if cancelling():  # the handler swallowed it and finished, or has cancelled itself
                    await self._shed(worker)
            try:
                if present != context:  # of the same content they share it, which costs next to nothing
                    break
            except Exception:  # noqa: BLE001 - two values that cannot be compared are not the same
                break
            if look and time() > turn_ends:
                worker.deliveries = None
                await asyncio.sleep(0)
                turn_ends = time() + SLICE
        worker.deliveries = None

    async def _shed(self, worker: Worker) -> None:
        """Let a cancellation that was meant for a handler which has ended reach nobody."""
        worker.deliveries = None
        worker.uncancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            worker.uncancel()

    async def _answer(self, worker: Worker, delivery: Delivery, error: BaseException) -> None:
        failure = self.failure(worker, error)
        if failure is None:
            delivery.inbox.outcomes.give_back(delivery)
        else:
            delivery.inbox.outcomes.failed(delivery, failure)
        del failure, error
        await self.let_thread_end(worker)

    def failure(self, worker: Worker, error: BaseException) -> BaseException | None:
        """What a handler failed with; None if it was cancelled because the consumer stops."""
        if isinstance(error, KeyboardInterrupt):
            raise error
        if isinstance(error, GeneratorExit) and asyncio.current_task() is not worker.task:
            raise error  # the worker itself is being thrown away
        why = worker.cancelled
        if why is not None:
            worker.uncancel()
            if why is Cancelled.STOP:
                return None
            timeout = TimeoutError(f"the handler overran its timeout of {self._timeout:g} s")
            timeout.__cause__ = None if isinstance(error, asyncio.CancelledError) else error
            return timeout
        if isinstance(error, asyncio.CancelledError):
            worker.uncancel()  # of its own
        return error

    async def let_thread_end(self, worker: Worker) -> None:
        """Do not use this worker again before the thread that its handler hangs in has returned."""
        ended = self._threads.hanging(worker)
        if ended is None or self._stopping:
            return
        worker.deliveries, worker.hung = None, True
        log.error(
            "%s: a handler hangs in a thread; the worker waits for it to return", worker.task.get_name()
        )
        try:
            await ended
        except asyncio.CancelledError:
            if worker.cancelled is not Cancelled.STOP:
                raise
            worker.uncancel()
        finally:
            worker.hung = False

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broke(error)
        elif task.cancelled() and not self._stopping:
            self._broke(ThingsKitError("a worker was cancelled from outside"))

    def _check(self) -> None:
        """Cancel every handler that overran; come again when the next one could."""
        loop, timeout = asyncio.get_running_loop(), self._timeout or 0.0
        now = earliest = loop.time()
        for worker in self._workers:
            if worker.deliveries is None or worker.cancelled is not None:
                continue
            if worker.started + timeout <= now:
                worker.cancel(Cancelled.TIMEOUT)
            else:
                earliest = min(earliest, worker.started)
        self._watch = loop.call_at(earliest + timeout, self._check)


def handled_here() -> Sequence[Delivery]:
    """The deliveries for which this code runs: one in a handler, several in a batch handler, none elsewhere.

    It costs the good path nothing, as workers note what they have in hand anyway. A task that a handler leaves behind
    keeps what it was handed when it first asked.
    """
    own = threads.get()
    if own is None or not isinstance(own[1], Worker):
        return ()
    worker = own[1]
    in_hand = tuple(worker.in_hand())
    if _running_task() in {worker.task, None}:
        return in_hand
    kept = _kept.get()
    if kept is None:
        kept = in_hand
        _kept.set(kept)
    return kept


_kept: Final[ContextVar[tuple[Delivery, ...] | None]] = ContextVar("things_kit.kept", default=None)


def _running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # in a thread, which the worker waits for
        return None
