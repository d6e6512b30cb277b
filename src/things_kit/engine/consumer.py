"""The consumer: wires pumps, workers and outcomes together, and drains them."""

import asyncio
import functools
import logging
import random
import uuid
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final, Literal

import msgspec

from things_kit.engine.ages import ages_of
from things_kit.engine.apart import apart_batch
from things_kit.engine.batches import BatchWorkers
from things_kit.engine.cancelling import abandon, ended
from things_kit.engine.copies import Copies
from things_kit.engine.driver import SendsLater, Subscription
from things_kit.engine.fitting import bound, provided_by, states_of
from things_kit.engine.lanes import Lanes
from things_kit.engine.naming import EPHEMERAL
from things_kit.engine.options import ConsumerOptions
from things_kit.engine.outcomes import Outcomes
from things_kit.engine.pipeline import check_middleware, compile_batch_handler, compile_steps, is_plain
from things_kit.engine.producer import BrokerProducer
from things_kit.engine.pump import Pump
from things_kit.engine.results import Publishing
from things_kit.engine.retry_pump import RetryPump, sender
from things_kit.engine.retry_topics import SHORT, retry_topics
from things_kit.engine.surroundings import surroundings
from things_kit.engine.suspects import Suspects
from things_kit.engine.transmission import Transmission
from things_kit.engine.window import Window
from things_kit.engine.workers import Workers
from things_kit.messaging.errors import ClosedError, ConfigError
from things_kit.messaging.handler import ChecksTopics, Middleware
from things_kit.messaging.health import ConsumerHealth, MiddlewareState
from things_kit.messaging.instrument import Instrument, WatchesConsumers
from things_kit.messaging.names import DEAD_LETTER_GROUP
from things_kit.messaging.policy import Batch, seconds

log = logging.getLogger("things_kit.consumer")

LAST: Final = 3.25
"""Seconds beyond `drain_timeout` for what was cancelled to end, and for giving back what is held."""

CLOSING: Final = 1.5
"""Seconds beyond that for what does not end: it is cancelled, and left to itself."""

STUCK: Final = 300.0
"""Seconds without any settlement, while a handler runs, after which a consumer without timeout is not well."""


class BrokerConsumer:
    """Brings messages to a handler, from `start` until `stop`. Made by `broker.consumer`."""

    _pump_kind: type[Pump] = Pump

    def __init__(
        self,
        transmission: Transmission,
        options: ConsumerOptions,
        *,
        chance: random.Random | None = None,
        instruments: Sequence[Instrument] = (),
        ended: Callable[["BrokerConsumer"], None] = lambda _: None,
        started: Callable[["BrokerConsumer"], None] = lambda _: None,
    ) -> None:
        self.options = options
        self.group = options.group or f"{EPHEMERAL}{uuid.uuid4().hex}"
        self._transmission = transmission
        other = surroundings.get()
        self._chance = chance or (other.chance if other else random.Random())  # noqa: S311 - jitter is no secret
        self._started_hook, self._ended_hook = started, ended
        self._instruments = instruments
        self._dead_letters = {topic: options.dead_letter_of(topic, self.group) for topic in options.topics}
        self._compile()
        self._state: Literal["new", "running", "stopping", "stopped"] = "new"
        self._pumps: list[Pump] = []
        self._runs: list[asyncio.Task[None]] = []
        self._producer = BrokerProducer(transmission, insist=True, any_size=True)
        self._results = BrokerProducer(transmission, insist=True)
        self._answers = BrokerProducer(transmission, answers=True)
        self._workers = self._make_workers()
        width = options.concurrency * (1 if options.batch is None else options.batch.size)
        self._window = Window(width, lambda: self._workers.active)
        self._paused = False
        self._middleware: Sequence[Middleware] = options.middleware
        self._unwatch: list[Callable[[], None]] = []
        self._stop: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self._broken: BaseException | None = None

    def _compile(self) -> None:
        options, endpoint = self.options, self._transmission.url.endpoint
        topics = [options.contracts.get(name, name) for name in options.topics]
        if isinstance(options.handler, ChecksTopics):
            options.handler.check_topics(topics)
        common: dict[str, Any] = {
            "topics": topics,
            "transforms": options.transforms,
            "provides": provided_by(options.middleware),
        }
        if options.batch is None:
            for wrap in options.middleware:
                check_middleware(wrap)
            publish = None if options.publish is None else Publishing(options.publish, self.group)
            self._steps = compile_steps(options.handler, publish=publish, **common)
            self._outside = [each.handling(endpoint, options.group) for each in self._instruments]
        else:
            self._handle_batch = compile_batch_handler(options.handler, **common)
            self._lists = [each.handling_batches(endpoint, options.group) for each in self._instruments]

    async def _bind(self) -> Callable[[], None]:
        """Tell the middleware of us, and put it around the handler. Returns what starts the workers. Raises ConfigError."""
        self._middleware = await bound(self.options.middleware, self)
        workers = self._workers
        if not isinstance(workers, BatchWorkers):
            return functools.partial(workers.start, self._steps([*self._outside, *self._middleware]))
        handle = self._handle_batch
        for wrap in reversed([*self._lists, *map(attrgetter("handle_batch"), self._middleware)]):
            handle = wrap(handle)
        if self._middleware:
            handle = apart_batch(handle)
        return functools.partial(workers.start_lists, handle)

    # --- lifecycle

    async def start(self) -> None:
        """Begin; returns once messages can arrive. Starting a running consumer changes nothing.

        Raises:
            BrokerUnavailable: The broker was not there for `publish_timeout`.
            ConfigError: The broker cannot have such a topic or group, or `?declare=false` and one is missing.
            UnsupportedError: The broker cannot do what was asked.
            ClosedError: The consumer was stopped before, or its broker closed.
        """
        self._transmission.check_loop()
        if self._state == "running":
            return
        if self._state != "new":
            raise ClosedError("the consumer was stopped; make a new one")
        self._started_hook(self)
        self._state = "running"
        self._unwatch = [
            each.watch(self._transmission.url.endpoint, self.options.group, self)
            for each in self._instruments
            if isinstance(each, WatchesConsumers)
        ]
        try:
            await self._prepare()
            start_workers = await self._bind()
            await self._declare()
            self._raise_if_stopped()
            start_workers()
            self._pumps = [pump for topic in self.options.topics for pump in self._make_pumps(topic)]
            self._tell_paused()
            self._runs = [asyncio.create_task(pump.run(), name=f"{self._name} run") for pump in self._pumps]
            for run in self._runs:
                run.add_done_callback(self._run_ended)
            await self._subscribed()
        except BaseException:
            await asyncio.shield(self._begin_stop())
            self._ended_hook(self)
            raise

    async def stop(self) -> None:
        """Drain: what has begun may finish within `drain_timeout`, the rest goes back to the broker.

        Stopping twice is fine; a handler may stop its own consumer, and then does not wait for itself.
        """
        self._transmission.check_loop()
        if self._state == "new":
            self._state = "stopped"
            self._stopped.set()
        if self._state == "stopped":
            self._ended_hook(self)  # a broken one stays in the broker's health until somebody has seen to it
            return
        stopping = self._begin_stop()
        if not self._workers.owns(asyncio.current_task()):
            await asyncio.shield(stopping)
            self._ended_hook(self)

    async def wait(self) -> None:
        """Wait until it has stopped. Raises what broke it."""
        self._transmission.check_loop()
        await self._stopped.wait()
        if self._broken is not None:
            raise self._broken

    def runs_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this task is one in which its handler is called."""
        return self._workers.owns(task)

    def pause(self) -> None:
        """Begin nothing more, until `resume`; also before start. What runs ends, and retries wait.

        What is not begun goes back to the broker where that is not counted and keeps the order; else it stays here.
        """
        self._paused = True
        self._tell_paused()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = False
        self._tell_paused()

    @property
    def topics(self) -> tuple[str, ...]:
        """What it consumes."""
        return self.options.topics

    @property
    def batch(self) -> Batch | None:
        """How it hands out lists; None where it handles one message a call."""
        return self.options.batch

    @property
    def in_threads(self) -> bool:
        """Whether its handler is a plain function, which is called in a thread."""
        return is_plain(self.options.handler)

    @property
    def publishes(self) -> bool:
        """Whether what its handler returns is published."""
        return self.options.publish is not None

    @property
    def paused(self) -> bool:
        """Whether the user has paused it."""
        return self._paused

    def _tell_paused(self) -> None:
        self._workers.pause(self._paused)
        for pump in self._pumps:
            pump.pause(self._paused)

    async def __aenter__(self) -> "BrokerConsumer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # --- health

    def health(self) -> ConsumerHealth:
        """How it is at this moment."""
        inboxes = [pump.inbox for pump in self._pumps if pump.inbox is not None]
        now = asyncio.get_running_loop().time()
        oldest = min((since for inbox in inboxes if (since := inbox.oldest()) is not None), default=None)
        return ConsumerHealth(
            topics=self.options.topics,
            group=self.group,
            running=self.running,
            in_flight=sum(len(inbox.held) for inbox in inboxes),
            last_settled=max(
                (pump.last_settled for pump in self._pumps if pump.last_settled is not None), default=None
            ),
            oldest_in_flight=None if oldest is None else now - oldest,
            reason=self._trouble(now, oldest),
            put_off=self.put_off,
            middleware=self.middleware_states,
            age=max(self.ages().values()),
        )

    @property
    def running(self) -> bool:
        """Whether it has started, was not stopped, and nothing has broken it."""
        return self._state == "running" and self._broken is None

    def ages(self) -> dict[str, float]:
        """Of each topic for how many seconds the oldest message in hand has been published; 0 where none is."""
        inboxes = (pump.inbox for pump in self._pumps if pump.inbox is not None)
        return ages_of(self.options.topics, inboxes)

    def _trouble(self, now: float, oldest: float | None) -> str | None:
        if self._broken is not None:
            return f"it broke: {self._broken}"
        if self._state != "running":
            return None
        for pump in self._pumps:
            if pump.trouble is not None:
                return pump.trouble
        hanging = self._workers.hanging()
        if hanging:
            return (
                f"{hanging} of {self.options.concurrency} workers hang in a handler that overran its timeout"
            )
        progress = max(
            (pump.inbox.last_progress for pump in self._pumps if pump.inbox is not None), default=now
        )
        if oldest is not None and now - max(oldest, progress) > STUCK and self._workers.busy:
            return f"it is stuck: no message was finished for {now - max(oldest, progress):.0f} s"
        return None

    @property
    def discarded(self) -> int:
        """How many messages were dropped under `dead_letter=DISCARD`."""
        return sum(each.discarded for each in self._outcomes)

    @property
    def expired(self) -> int:
        """How many requests were not handled, as their deadline had passed."""
        return sum(each.expired for each in self._outcomes)

    @property
    def put_off(self) -> int:
        """How many messages wait by `Later`."""
        return sum(each.later for each in self._outcomes)

    @property
    def middleware_states(self) -> tuple[MiddlewareState, ...]:
        """How its middleware is, where that has a state."""
        return states_of(self._middleware)

    @property
    def address(self) -> str:
        """The URL of its broker, without login and options."""
        return self._transmission.url.display

    @property
    def handled(self) -> int:
        """How many messages this consumer has acknowledged, as handled or given up."""
        return sum(each.handled for each in self._outcomes)

    @property
    def given_back(self) -> int:
        """How many messages it has given back to the broker as it stopped, uncounted: not those that wait there for an attempt."""
        return sum(each.given_back for each in self._outcomes)

    @property
    def _outcomes(self) -> set[Outcomes]:
        """Those of its topics; a topic's retries share them."""
        return {pump.outcomes for pump in self._pumps}

    # --- parts

    async def _prepare(self) -> None:
        """What the contracts need from elsewhere, such as from a schema registry."""
        for topic in self.options.contracts.values():
            await self._transmission.prepare(topic)
        if self.options.publish is not None:
            await self._transmission.prepare(self.options.publish)

    async def _declare(self) -> None:
        for topic in self.options.topics:
            await self._transmission.refuse_pattern(topic)
        if not self._transmission.url.engine.declare:
            return
        for topic, dead_letter in self._dead_letters.items():
            await self._transmission.declare(topic)
            if dead_letter is not None:
                await self._transmission.declare(dead_letter, [DEAD_LETTER_GROUP])
            for retry_topic in retry_topics(topic, self.group) if self._uses_retry_topics else ():
                await self._transmission.declare(retry_topic)

    def _make_workers(self) -> Workers:
        options = self.options
        common: dict[str, Any] = {
            "concurrency": min(options.concurrency, options.max_in_flight),  # more would never have one
            "timeout": None if options.timeout is None else seconds(options.timeout, "timeout"),
            "starved": self._starved,
            "broke": self._broke,
            "name": self._name,
        }
        if options.batch is None:
            return Workers(**common)
        size, wait = options.batch.size, seconds(options.batch.wait, "Batch.wait")
        return BatchWorkers(size=size, wait=wait, **common)

    def _make_pumps(self, topic: str) -> list[Pump]:
        options = self.options
        share = options.max_in_flight // len(options.topics)
        topics = retry_topics(topic, self.group) if self._uses_retry_topics else []
        waiting = share // (2 * len(topics)) if topics else 0
        if topics and not waiting:
            raise ConfigError(
                f'mode="delayed" needs max_in_flight={2 * len(topics) * len(options.topics)} or more on this broker, '
                "where what waits has topics of its own"
            )
        subscription = Subscription(
            topic=topic,
            group=self.group,
            ephemeral=options.group is None,
            start=options.start if options.group is not None else "latest",
            ordering=options.ordering,
            max_in_flight=share - waiting * len(topics),
            create=self._transmission.url.engine.declare,
        )
        parts = self._parts_of(topic)
        retries = (
            msgspec.structs.replace(subscription, topic=name, start="earliest", max_in_flight=waiting)
            for name in topics
        )
        return [self._pump_kind(subscription, *parts), *(RetryPump(retry, *parts) for retry in retries)]

    def _parts_of(self, topic: str) -> tuple[Any, ...]:
        """What the pumps of one topic share: a retried message is of the lane that it always was of."""
        options, driver, workers = self.options, self._transmission.driver, self._workers
        native, name = driver.capabilities, f"{topic} as {self.group}"
        lanes, copies = Lanes(options.ordering, workers.ready), self._copies()
        outcomes = Outcomes(
            name, self.group, options, self._dead_letters[topic], self._chance,
            native, lanes, workers, self._producer, copies, self._results, self._answers,
        )  # fmt: skip
        suspects = None
        if native.suspects and not outcomes.keeps:
            suspects = Suspects(name, options.retry.attempts, lanes, workers, copies, outcomes.failed)
        drain = seconds(options.drain_timeout, "drain_timeout")
        return driver, drain, lanes, workers, self._window, outcomes, suspects

    def _copies(self) -> Copies | None:
        """How messages are put aside where the broker has no delay beside a message; None: they wait in memory."""
        driver = self._transmission.driver
        if self._uses_retry_topics:
            return Copies(sender(self._producer), self.group, SHORT)
        if isinstance(driver, SendsLater) and self.options.group is not None:
            return Copies(driver.send_later, self.group, max(SHORT, driver.capabilities.delay_from))
        return None

    @property
    def _uses_retry_topics(self) -> bool:
        native = self._transmission.driver.capabilities
        delayed = self.options.retry.mode == "delayed" and self.options.group is not None
        return (
            delayed
            and native.retained
            and not native.delay
            and not isinstance(self._transmission.driver, SendsLater)
        )

    def _starved(self) -> None:
        for pump in self._pumps:
            pump.make_room()

    # --- start, stop, break

    async def _subscribed(self) -> None:
        """Wait until every topic is subscribed, or the consumer broke.

        A broker that is away may stay so for `publish_timeout`. One that is there may take longer: such as for a group
        whose last member has died, until its session has ended.
        """
        timeout = self._transmission.url.engine.publish_timeout
        waits = {asyncio.create_task(pump.subscribed.wait()) for pump in self._pumps}
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            pending: set[asyncio.Task[Any]] = set(waits)
            while pending and not stopped.done():
                done, pending = await asyncio.wait(
                    {*pending, stopped}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
                pending.discard(stopped)
                if not done:
                    await self._raise_if_away(timeout)
        finally:
            await ended(*waits, stopped)
        self._raise_if_stopped()

    async def _raise_if_away(self, timeout: float) -> None:
        away = next((pump.away for pump in self._pumps if pump.away is not None), None)
        away = away or await self._transmission.trouble()
        if away is not None:
            raise self._transmission.unavailable(timeout, away) from (away.__cause__ or away)

    def _raise_if_stopped(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._state != "running":
            raise ClosedError("the consumer was stopped while it started")

    def _run_ended(self, run: asyncio.Task[None]) -> None:
        if run.cancelled():
            if self._state == "running":
                self._broke(RuntimeError(f"{run.get_name()} was cancelled from outside"))
        elif (error := run.exception()) is not None:
            self._broke(error)

    def _broke(self, error: BaseException) -> None:
        if self._broken is None and self._state in {"running", "stopping"}:
            self._broken = error
            log.error("%s: it broke and stops: %s", self._name, error, exc_info=error)
            self._begin_stop()

    def _begin_stop(self) -> asyncio.Task[None]:
        if self._stop is None:
            self._state = "stopping"
            self._workers.halt()  # now, not in the task's turn: a handler that stops us is the last one
            self._stop = asyncio.create_task(self._drain(), name=f"{self._name} stop")
        return self._stop

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds(self.options.drain_timeout, "drain_timeout")
        try:
            stopping = asyncio.gather(*(pump.stop_receiving() for pump in self._pumps))
            for pump, run in zip(self._pumps, self._runs, strict=False):
                if pump.inbox is None:  # it is trying to connect
                    run.cancel()
            await stopping
            await self._workers.stop(max(0.0, ends - loop.time()))
            await asyncio.gather(*(pump.finish(max(0.0, ends - loop.time())) for pump in self._pumps))
            await self._end(self._runs, ends + LAST - loop.time())
            await self._producer.close(within=max(0.0, ends - loop.time()))
            await self._results.close(within=max(0.0, ends - loop.time()))
            await self._answers.close(within=max(0.0, ends - loop.time()))
        finally:
            self._state = "stopped"
            self._stopped.set()
            for unwatch in self._unwatch:
                unwatch()
            if self._workers.ended:
                for pump in self._pumps:
                    pump.dispose()
            if self._broken is None:
                self._ended_hook(self)

    async def _end(self, tasks: Sequence[asyncio.Task[None]], within: float) -> None:
        """Wait for these, cancel what takes longer, and leave behind what takes longer still."""
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=max(0.0, within))
        for task in late:
            task.cancel()
        if late:
            _, late = await asyncio.wait(late, timeout=CLOSING)
        for task in late:
            log.warning("%s: it does not end; it is left behind", task.get_name())
            abandon(task)

    @property
    def _name(self) -> str:
        return f"{', '.join(self.options.topics)} as {self.group}"
