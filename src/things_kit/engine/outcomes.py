"""What becomes of messages whose handling failed: tried again, or given up."""

import asyncio
import logging
import random
from collections.abc import Coroutine, Sequence
from contextvars import Context
from typing import Any, Final

from things_kit.engine.answers import Expired, failure_of, misses_deadline
from things_kit.engine.copies import Copies
from things_kit.engine.dead_letter import make_dead_letter
from things_kit.engine.delays import Delays
from things_kit.engine.driver import Capabilities, Delivery, Release, Which
from things_kit.engine.failures import Failures
from things_kit.engine.held import refusal
from things_kit.engine.lanes import Lanes
from things_kit.engine.options import ConsumerOptions
from things_kit.engine.outages import Outages
from things_kit.engine.producer import BrokerProducer
from things_kit.engine.results import Results, publish_results, send_answer
from things_kit.engine.state import State
from things_kit.engine.verdict import judge, longest_wait
from things_kit.engine.workers import Workers
from things_kit.messaging.codec import Unprepared
from things_kit.messaging.errors import ClosedError, DecodeError, NobodyListens, ThingsKitError
from things_kit.messaging.message import Message
from things_kit.messaging.names import is_request
from things_kit.messaging.outcomes import Later

log = logging.getLogger("things_kit.consumer")

FETCH: Final = 60.0
"""Seconds after which a message whose decoder waits for something is decoded anew, whatever became of that."""

FETCH_AGAIN: Final = 1.0
"""Seconds until what could not be fetched is asked for again."""

LOOK_AGAIN: Final = 1.0
"""Seconds after which what went back, as too much waits here already, is offered again, to whoever could begin it."""


class Outcomes:
    """Decides what becomes of one topic's failures, and sees to it.

    `copies` sends what is put aside to where it waits, on brokers without delays; None: it waits in memory. `results`
    publishes what handlers return, and `answers` what is sent to who has asked.
    `handled` counts what was acknowledged, dead letters among it, and `given_back` what went back at a stop as it had come;
    `expired` the requests that came too late to be handled.
    """

    def __init__(
        self,
        name: str,
        group: str,
        options: ConsumerOptions,
        dead_letter: str | None,
        chance: random.Random,
        capabilities: Capabilities,
        lanes: Lanes,
        workers: Workers,
        producer: BrokerProducer,
        copies: Copies | None,
        results: BrokerProducer,
        answers: BrokerProducer,
    ) -> None:
        self.keeps = options.dead_letter is None  # nothing is ever given up
        self.discarded = 0
        self.handled = self.given_back = self.expired = 0
        self.stopping = False
        self._name = name
        self._capabilities = capabilities
        self._group = group
        self._retry = options.retry
        self._dead_letter = dead_letter
        self._chance = chance
        self._lanes = lanes
        self._workers = workers
        self._producer = producer
        self._copies = copies
        self._results = results
        self._answers = answers
        self._outages = Outages(name, "what decodes its messages")
        self._failures = Failures(name, options.retry.permanent)
        self._delays = Delays(self._due)
        self._later: set[Delivery] = set()
        self._most_later = max(1, options.max_in_flight // (2 * len(options.topics)))
        self._leaving: dict[asyncio.Task[None], Delivery] = {}
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def longest_wait(self) -> float:
        """Seconds until something is tried again that no attempt has changed."""
        return longest_wait(self._retry, self._chance)

    # --- failures

    def failed(self, delivery: Delivery, error: BaseException) -> None:
        """Decide what becomes of a delivery whose handler failed."""
        if isinstance(error, Unprepared):
            _begin(error)
        if delivery.state is State.GONE:
            self.pass_on(delivery)  # it comes, or has come, to somebody again
            return
        if isinstance(error, Results):
            self._publish(delivery, error)
            return
        if isinstance(error, Unprepared):
            self._fetch(delivery, error)
            return
        if isinstance(error, Later):
            self._wait_in_turn(delivery, error.wait)
            return
        message = delivery.message
        if isinstance(error, Expired):
            self._expire(delivery)
            return
        wait = judge(error, message.attempt, self._retry, keep=self.keeps, chance=self._chance)
        if wait is not None and not self.keeps and self._is_too_late(message, wait):
            wait = None
        if wait is not None:
            self._failures.again(message.id, message.attempt, error, wait)
            self._try_again(delivery, wait)
        else:
            self._give_up(delivery, error)

    def pass_on(self, delivery: Delivery) -> None:
        """Nobody asks for the outcome any more; its lane goes on."""
        delivery.state = State.DONE
        self._lanes.advance(delivery)
        self._workers.wake()

    def give_back(self, delivery: Delivery) -> None:
        """Return a delivery whose handler was cut short by the stop: nobody's failure, so not counted."""
        if delivery.suspect and delivery.state is State.HANDLING:
            delivery.state = State.READY  # its mark is taken back first: see Suspects
            return
        delivery.inbox.release(Release(delivery, attempt=delivery.message.attempt))

    def _try_again(self, delivery: Delivery, wait: float) -> None:
        """In place: the lane waits with its head. Delayed: the head gives up its place and the lane goes on."""
        native, lane = self._capabilities, self._lanes.lane_of(delivery)
        again = Release(delivery, wait, delivery.message.attempt + 1)
        if delivery.state is State.GONE:
            self.pass_on(delivery)
        elif delivery.state is State.DONE:
            pass
        elif self._retry.mode == "delayed":
            self._put_aside(again)
        elif native.lanes and delivery.state is State.LEAVING_ASIDE:
            delivery.inbox.release(again)
        elif native.lanes:
            for other in self._leaving.values():
                if (
                    other.state is State.LEAVING
                    and other.inbox is delivery.inbox
                    and other is not delivery
                    and self._lanes.lane_of(other) == lane
                ):
                    other.state = State.LEAVING_ASIDE
            delivery.inbox.park(again)
        elif lane is None and not self.stopping and self._copies is not None and self._copies.wanted(wait):
            self._put_aside(again)
        elif (self._waits_in_broker(wait) and native.attempts and lane is None) or self.stopping:
            # A head that came later than those behind it, which go back now, would be overtaken: order before back-off
            again.delay = wait if native.delay and lane is None else 0.0
            delivery.inbox.release(again)
        else:
            self._hold_in_turn(again)

    def _hold_in_turn(self, again: Release) -> None:
        """It waits here, its lane behind it; behind it too those of its lane that failed in the same batch."""
        delivery = again.delivery
        lane = self._lanes.lane_of(delivery)
        if self._lanes.has_several_heads(lane) and any(
            self._lanes.lane_of(each) == lane for each in self._delays
        ):
            delivery.message = delivery.message.replace(attempt=again.attempt)
            arrived = {each: number for number, each in enumerate(delivery.inbox.held)}
            self._lanes.put_behind([delivery], arrived)  # several of one batch failed: they keep their order
        else:
            self._hold(again, State.BACKING_OFF)

    def put_off(self, delivery: Delivery, wait: float) -> None:
        """It came before it is due: that is no attempt, and no lane waits for it."""
        if self._waits_in_broker(wait):
            delivery.inbox.release(Release(delivery, wait, delivery.message.attempt))
        elif self._copies is None or not self._copies.wanted(wait):
            delivery.state = State.ASIDE
            self._delays.hold(delivery, wait, delivery.due)
        else:
            delivery.state = State.LEAVING_ASIDE
            self._copies.add(delivery, wait, self._no_copy, suspect=delivery.suspect)

    def _waits_in_broker(self, wait: float) -> bool:
        return self._capabilities.delay and wait >= self._capabilities.delay_from

    def _put_aside(self, again: Release) -> None:
        """Its lane goes on; it waits in the broker, as a copy, or here."""
        delivery = again.delivery
        waited_for = delivery.state is not State.LEAVING_ASIDE
        if self.stopping or self._waits_in_broker(again.delay):
            again.aside = True
            again.delay = again.delay if self._capabilities.delay else 0.0
            delivery.inbox.release(again)
        elif self._copies is None or not self._copies.wanted(again.delay):
            self._hold(again, State.ASIDE)
        else:
            delivery.message = delivery.message.replace(attempt=again.attempt)
            delivery.state = State.LEAVING_ASIDE
            self._copies.add(delivery, again.delay, self._no_copy)
        if waited_for:
            self._lanes.advance(delivery)
        self._workers.wake()

    def _no_copy(self, delivery: Delivery, wait: float, error: Exception) -> None:
        log.warning("%s: message %r waits in memory: %s", self._name, delivery.message.id, error)
        if delivery.state is State.LEAVING_ASIDE:
            delivery.state = State.ASIDE
            self._delays.hold(delivery, wait)

    def _hold(self, again: Release, state: State) -> None:
        delivery = again.delivery
        delivery.message = delivery.message.replace(attempt=again.attempt)
        delivery.state = state
        self._delays.hold(delivery, again.delay)

    def _due(self, delivery: Delivery) -> None:
        self._later.discard(delivery)
        aside = delivery.state is State.ASIDE
        delivery.state = State.READY
        if aside:
            delivery.inbox.admit_again(delivery)
        else:
            self._workers.ready.append(delivery)
        self._workers.wake()

    # --- giving up

    def _give_up(self, delivery: Delivery, error: BaseException) -> None:
        message = delivery.message
        self._failures.for_good(message.id, message.attempt, error)
        if self._dead_letter is None:
            self.discarded += 1
            if is_request(message.headers):
                self._answer(failure_of(message, error), message)
            if delivery.state is State.ASIDE:
                delivery.inbox.acknowledge(delivery)
            else:
                delivery.inbox.done(delivery)
            self._workers.wake()
            return
        delivery.state = State.LEAVING_ASIDE if delivery.state is State.ASIDE else State.LEAVING
        answer = failure_of(message, error) if is_request(message.headers) else None
        dead = make_dead_letter(
            message,
            topic=self._dead_letter,
            group=self._group,
            error=error,
            limit=self._capabilities.dead_letter_bytes,
        )
        self._in_background(self._bury(delivery, dead, answer), delivery)

    async def _bury(self, delivery: Delivery, dead: Message, answer: Message | None) -> None:
        """Acknowledge a message only after its dead letter is confirmed; without one it is tried again."""
        try:
            await self._producer.publish(dead)
        except Exception as error:
            log.log(
                logging.ERROR, "%s: the dead letter of message %r was not published: %s; the message is kept",
                self._name, delivery.message.id, error,
                exc_info=not isinstance(error, ThingsKitError),  # whose sentence says it all
            )  # fmt: skip
            self._try_again(delivery, self.longest_wait)
        else:
            if answer is not None:
                self._answer(answer, delivery.message)
            delivery.inbox.left(delivery)
            self._workers.wake()

    def _in_background(
        self, work: Coroutine[Any, Any, None], delivery: Delivery, context: Context | None = None
    ) -> None:
        task = asyncio.create_task(work, name=f"{self._name} leaving message", context=context)
        self._leaving[task] = delivery
        task.add_done_callback(self._leaving.pop)

    # --- what is neither success nor failure yet

    def _publish(self, delivery: Delivery, results: Results) -> None:
        """Its lane waits for what it returned to be confirmed; the worker goes on."""
        delivery.state = State.LEAVING
        work = self._acknowledge_after(delivery, results.messages, results.answer)
        self._in_background(work, delivery, results.context)

    async def _acknowledge_after(
        self, delivery: Delivery, messages: Sequence[Message], answer: Message | None
    ) -> None:
        refusal.set(None)  # the context is the handler's, whose transaction is over
        try:
            if messages:
                await publish_results(self._results, messages)
            if answer is not None:
                await self._send_answer(answer, delivery.message)
        except ClosedError:
            # A stop that did not wait: it comes again, and returns the same
            delivery.inbox.release(Release(delivery, attempt=delivery.message.attempt))
        except Exception as error:  # noqa: BLE001 - it is that message's failure
            if delivery.state is State.LEAVING_ASIDE:  # its lane has gone back
                self._try_again(delivery, self.longest_wait)
                return
            if delivery.state is State.LEAVING:
                delivery.state = State.HANDLING
            self.failed(delivery, error)
        else:
            delivery.inbox.left(delivery)
        self._workers.wake()

    # --- requests

    def _is_too_late(self, message: Message, wait: float) -> bool:
        return is_request(message.headers) and misses_deadline(message, wait)

    def _expire(self, delivery: Delivery) -> None:
        """Nobody waits for its reply any more: it is acknowledged without having been handled."""
        self.expired += 1
        message = delivery.message
        log.info("%s: the deadline of request %r has passed; it is not handled", self._name, message.id)
        delivery.inbox.done(delivery)
        self._workers.wake()

    async def _send_answer(self, answer: Message, request: Message) -> None:
        """Returns when it is confirmed, or nobody may wait for it any more; no lane waits for an inbox to come back."""
        try:
            await send_answer(self._answers, answer, request, lambda: False)
        except NobodyListens:
            self._answer(answer, request)

    def _answer(self, answer: Message, request: Message) -> None:
        """Send it in the background: its message has been seen to, so nothing waits for this."""

        async def answering() -> None:
            try:
                await send_answer(self._answers, answer, request, lambda: not self.stopping)
            except (NobodyListens, ClosedError):
                log.info("%s: who asked for %r is not there any more", self._name, request.id)
            except Exception as error:  # noqa: BLE001 - the message itself is safe
                log.warning("%s: who asked for %r was not answered: %s", self._name, request.id, error)

        task = asyncio.create_task(answering(), name=f"{self._name} answer")
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _fetch(self, delivery: Delivery, error: Unprepared) -> None:
        """Its lane waits until what decodes it was fetched. No attempt is counted."""
        if self.stopping:
            self.give_back(delivery)
            return
        self._hold_in_turn(Release(delivery, FETCH, delivery.message.attempt))
        _begin(error).add_done_callback(lambda fetched: self._fetched(delivery, fetched))

    def _fetched(self, delivery: Delivery, fetched: "asyncio.Future[object]") -> None:
        if not self._delays.drop(lambda each: each is delivery):
            return  # it went back meanwhile
        error = asyncio.CancelledError() if fetched.cancelled() else fetched.exception()
        if error is None:
            self._outages.ended()
            self._due(delivery)
        elif isinstance(error, DecodeError):
            delivery.state = State.READY
            self.failed(delivery, error)
        else:
            self._outages.lasts(error)
            self._delays.hold(delivery, FETCH_AGAIN)

    # --- what is not to be handled now

    @property
    def later(self) -> int:
        """How many wait by `Later`."""
        return len(self._later)

    @property
    def full(self) -> bool:
        """Whether so many wait by `Later` that no more is to be asked for: another process might handle it now."""
        return len(self._later) >= self._most_later

    def _wait_in_turn(self, delivery: Delivery, wait: float) -> None:
        """It stays the head of its lane. No attempt is counted; what is too much here goes back for others."""
        native, lane = self._capabilities, self._lanes.lane_of(delivery)
        if self.stopping:
            self.give_back(delivery)
            return
        again = Release(delivery, min(wait, LOOK_AGAIN), delivery.message.attempt)
        costs_nothing = self._waits_in_broker(again.delay) and not native.counts_releases
        goes = self.full and costs_nothing and not delivery.suspect
        if goes and lane is None:
            delivery.inbox.release(again)
        elif goes and native.lanes and not self._lanes.has_several_heads(lane):
            delivery.inbox.park(again)
        else:
            again.delay = wait
            self._hold_in_turn(again)
            if delivery.state is State.BACKING_OFF:
                self._later.add(delivery)

    # --- stopping, and what others take back

    def drop(self, which: Which) -> None:
        """Take these out of what waits here; a lane whose head was only waiting goes on without it."""
        self._lanes.drop(which)
        for delivery in self._workers.drop(which):
            self._lanes.advance(delivery)
        for delivery in self._delays.drop(which):
            self._later.discard(delivery)
            if delivery.state is State.BACKING_OFF:
                self._lanes.advance(delivery)

    def stop(self) -> None:
        """Begin no waiting any more."""
        self.stopping = True
        self._failures.close()

    @property
    def leaving(self) -> list[asyncio.Task[None]]:
        """The dead letters and copies that are on their way."""
        return [*self._leaving, *self._answering, *(() if self._copies is None else self._copies.tasks)]


def _begin(error: Unprepared) -> "asyncio.Future[object]":
    """Begin to fetch it, once for all deliveries of a batch; also where nobody waits, as a coroutine is to be awaited."""
    error.awaitable = fetching = asyncio.ensure_future(error.awaitable)
    fetching.add_done_callback(lambda done: done.cancelled() or done.exception())
    return fetching
