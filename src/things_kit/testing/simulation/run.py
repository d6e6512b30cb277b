"""One history: processes that start, crash, stop and start again, until all is handled and checked."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import Context
from typing import Any, Final

from things_kit.codecs.contract import contract_decoder
from things_kit.engine.broker import Broker
from things_kit.engine.consumer import BrokerConsumer
from things_kit.engine.inbox import ConsumerInbox
from things_kit.engine.naming import is_inbox
from things_kit.engine.surroundings import surroundings
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ClosedError, ConfigError
from things_kit.messaging.message import Message
from things_kit.messaging.names import DEAD_LETTER_GROUP
from things_kit.patterns.periodic import FIRINGS
from things_kit.testing.simulation import marks
from things_kit.testing.simulation.faults import Fault
from things_kit.testing.simulation.fences import Fences, fenced
from things_kit.testing.simulation.history import History
from things_kit.testing.simulation.inside import Inside, Watching
from things_kit.testing.simulation.loop import NothingLeft, SimulationLoop
from things_kit.testing.simulation.models import model
from things_kit.testing.simulation.models.server import Server
from things_kit.testing.simulation.outcome import Outcome
from things_kit.testing.simulation.plan import Chance, Plan
from things_kit.testing.simulation.process import PROCESS, SimulatedProcess
from things_kit.testing.simulation.world import World

AT_WILL: Final = 60.0
"""Seconds after the workload during which things go wrong still, unless all is handled before."""

AHEAD: Final = 3600.0
"""Seconds from the end of the workload: what is scheduled for then or sooner is waited for."""

STEPS: Final = 400_000
"""The most steps of a history."""

RESTART: Final = (0.1, 5.0)
"""Seconds until a process that died is started again, from and to."""

SKEW: Final = 5.0
"""Seconds by which a wall clock may be wrong."""

FAR: Final = 40
"""The most steps from the moment that condemns a process to its end."""


class NoWorldError(ConfigError):
    """What makes worlds made something else."""


class CheckFailed(Exception):
    """Which check it was; the cause is what it raised."""

    def __init__(self, check: str, cause: BaseException) -> None:
        super().__init__(check)
        self.check = check
        self.cause = cause


class Run:
    """One history of a plan."""

    def __init__(
        self, make: Callable[[], World], broker: str, plan: Plan, faults: Mapping[str, Fault]
    ) -> None:
        self.plan = plan
        self.chance = Chance(plan, faults)
        self.loop = SimulationLoop(self.chance.turn)  # type: ignore[abstract] # the rest is not to be had
        self.history = History()
        traits, group = model(broker)
        self.server = Server(traits, group, self.chance, self.note)
        self._make = make
        self._url = BrokerURL.parse(f"{broker}://simulated")
        self._fences: Fences
        self._world: World
        self._checks_always = False
        self._running: dict[int, SimulatedProcess] = {}
        self._brokers: dict[SimulatedProcess, Broker] = {}
        self._parts: dict[SimulatedProcess, list[Any]] = {}
        self._condemned: dict[SimulatedProcess, tuple[str, int]] = {}
        self._main: asyncio.Task[None]
        self._all_run = asyncio.Event()
        self._worked_at: float | None = None
        self._healed_at: float | None = None
        self._noted_at = 0.0
        self._kept: list[object] = []

    def execute(self) -> Outcome:
        """Run it to its end, whatever that is."""
        outcome = Outcome(plan=self.plan)
        try:
            with (
                fenced(self.loop, self.chance.stream("outside")) as self._fences,
                marks.noted_in(self.history),
            ):
                self._run()
        except CheckFailed as failed:
            outcome.fail(failed.check, failed.cause)
        except NoWorldError:
            raise
        except Exception as error:  # noqa: BLE001 - such as what reached outside of the simulation
            outcome.fail("simulation", error)
        finally:
            self.loop.close()
        outcome.hash, outcome.rows = self.history.hash, self.history.rows
        outcome.happened, outcome.turns = self.chance.happened, self.chance.turns
        outcome.reached, outcome.seconds = self.history.reached, self.loop.time()
        outcome.steps = self.loop.steps
        outcome.messages = len(self.server.workload)
        return outcome

    def close(self) -> None:
        """Do away with what was abandoned; none of it is part of the history."""
        if not self.loop.tasks:
            return  # nothing could begin
        self.history, self.chance.healed = History(), True
        with fenced(self.loop, self.chance.stream("remains")):
            self.loop.do_away_with_tasks()
        for inbox in self.server.inboxes:
            if isinstance(inbox, ConsumerInbox):
                inbox.dispose()
        self._kept.clear()

    def _run(self) -> None:
        self.loop.after_step = self._after_step
        self.loop.before = self._before
        self._main = self._in(None, self._work)
        try:
            self.loop.run(self._at_rest)
        except NothingLeft:
            if not self._at_rest():
                raise CheckFailed(
                    "rest", AssertionError("everything waits, and nothing could ever wake it")
                ) from None
        self._check("eventually")

    def _at_rest(self) -> bool:
        if self._main.done() and not self._main.cancelled() and (error := self._main.exception()) is not None:
            raise error
        if self._worked_at is None:
            return False
        now = self.loop.time()
        drained = self._drained()
        if self._healed_at is None:
            if drained or now > self._worked_at + AT_WILL:
                self._heal(now)
            return False
        if not drained and (
            now > max(self._healed_at, self._noted_at) + self.plan.rest or self.loop.steps > STEPS
        ):
            behind = [f"{lag} of {name}" for name, lag in self._lags() if lag]
            behind += [f"what is scheduled in {topic}" for topic in self._scheduled()]
            waiting = ", ".join(behind) or "a process is missing, or at_rest() is not True"
            raise CheckFailed("rest", AssertionError(f"it does not come to rest: {waiting}"))
        return drained

    def _lags(self) -> Iterator[tuple[str, int]]:
        """What each group has left to handle, but for what is scheduled for long after the workload."""
        until = self.server.schedules.horizon(self._ahead)
        for topic in self.server.topics.values():
            if is_inbox(topic.name):
                continue  # that of a dead process is read by nobody
            for name, group in topic.groups.items():
                if name != DEAD_LETTER_GROUP or (topic.name, name) in self.server.joined:
                    yield f"{topic.name} for {name}", group.lag(until)

    def _drained(self) -> bool:
        return (
            len(self._running) == self.plan.processes
            and not any(lag for _, lag in self._lags())
            and not self._scheduled()
            and self._world.at_rest()
        )

    @property
    def _ahead(self) -> float:
        """Until when what is scheduled is waited for, in the loop's time."""
        return (self._worked_at or 0.0) + AHEAD

    def _scheduled(self) -> list[str]:
        """The topics in which something is still to come; where every firing plans the next, only what is due already."""
        waiting, now = self.server.schedules.waiting, self.loop.time()
        return [topic for topic in waiting(self._ahead) if not topic.startswith(FIRINGS)] + [
            topic for topic in waiting(now) if topic.startswith(FIRINGS)
        ]

    def _heal(self, now: float) -> None:
        self._healed_at = now
        self.chance.healed = True
        self.server.heal()
        self.note("all is healed", None)

    # --- the world

    async def _work(self) -> None:
        """Set up, start every process, then do the work."""
        world = self._make()
        if not isinstance(world, World):
            raise NoWorldError(
                f"world must be a World class, or a function that makes one; it made {world!r}"
            )
        self._world = world
        self._world.history = self.history
        await _attempt("setup", self._world.setup)
        self._checks_always = type(self._world).always is not World.always
        for number in range(1, self.plan.processes + 1):
            self._start(number, 0)
        await self._all_run.wait()
        workload = SimulatedProcess(0, 0, 0.0, self.chance.stream("workload process"))
        await self._in(workload, lambda: self._publish(workload))
        self._worked_at = self.loop.time()

    async def _publish(self, process: SimulatedProcess) -> None:
        async with self._connect(process) as broker:
            producer = broker.producer()
            await _attempt("workload", lambda: self._world.workload(producer))

    def _connect(self, process: SimulatedProcess) -> Broker:
        broker = Broker(self.server.driver(process), self._url)
        broker.instrument(Watching(self, process))
        return broker

    def _check(self, name: str) -> None:
        try:
            result = getattr(self._world, name)()
        except Exception as error:
            raise CheckFailed(name, error) from error
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise CheckFailed(name, TypeError(f"{name} must be a plain function, not async"))

    # --- processes

    def _in(
        self, process: SimulatedProcess | None, function: Callable[[], Awaitable[Any]]
    ) -> asyncio.Task[Any]:
        """Run this in a process, or outside of all."""
        context = Context()
        context.run(PROCESS.set, process)
        if process is not None:
            context.run(surroundings.set, Inside(self, process))

        async def run() -> Any:
            return await function()

        return self.loop.create_task(run(), context=context)

    def _start(self, number: int, generation: int) -> asyncio.Task[Any]:
        skew = self.chance.between(-SKEW, SKEW) if self.chance.strikes("clock_skew") else 0.0
        process = SimulatedProcess(
            number, generation, skew, self.chance.stream(f"engine {number} {generation}")
        )
        return self._in(process, lambda: self._live(process))

    async def _live(self, process: SimulatedProcess) -> None:
        try:
            broker = self._brokers[process] = self._connect(process)
            await broker.open()
            made = self._world.consumers(broker)
            parts = self._parts[process] = list(await made if inspect.isawaitable(made) else made)
            for part in parts:
                self._expect(part)
                await part.start()
        except ClosedError:
            return  # it was told to stop while it started
        except Exception as error:  # noqa: BLE001 - the world's own fault
            self.loop.fail(CheckFailed("consumers", error))
            return
        self._running[process.number] = process
        if len(self._running) == self.plan.processes:
            self._all_run.set()

    def _expect(self, made: Any) -> None:
        consumer = getattr(made, "consumer", made)  # what runs every so often has one
        if not isinstance(consumer, BrokerConsumer):
            return  # such as a relay
        for contract in consumer.options.contracts.values():
            self.history.decoders[contract.name] = contract_decoder(contract, object, "the history")
        for topic in consumer.options.topics:
            self.history.joined(topic, consumer.group)
            self.server.joined.add((topic, consumer.group))

    def _before(self, owner: SimulatedProcess | None) -> None:
        self._fences.show(0.0 if owner is None else owner.skew)

    def _after_step(self, owner: SimulatedProcess | None) -> None:
        if self._checks_always:
            self._check("always")
        if owner in self._condemned:
            fate, left = self._condemned[owner]
            if left:
                self._condemned[owner] = fate, left - 1
            else:
                del self._condemned[owner]
                self.chance.looming[fate] -= 1
                (self._crash if fate == "crash" else self._stop)(owner)

    def condemn(self, process: SimulatedProcess, fate: str) -> None:
        """It crashes, or is told to stop, a few steps from now."""
        if process not in self._condemned and process.number:
            self._condemned[process] = fate, self.chance.below(FAR)
            self.chance.looming[fate] += 1

    def _crash(self, process: SimulatedProcess) -> None:
        self.note(f"{process} crashes", None)
        process.gone = True
        self.loop.abandon(process)
        self._fences.crashed(process)
        self._kept += [self._brokers.pop(process, None), self._parts.pop(process, None)]
        self._running.pop(process.number, None)
        self._in(None, lambda: self._bury(process))

    async def _bury(self, process: SimulatedProcess) -> None:
        self.server.crashed(process)
        try:
            self._world.crashed(process.number)
        except Exception as error:  # noqa: BLE001 - the world's own fault
            self.loop.fail(CheckFailed("crashed", error))
        await self._again(process)

    def _stop(self, process: SimulatedProcess) -> None:
        self.note(f"{process} is told to stop", None)
        broker = self._brokers.pop(process, None)
        self._running.pop(process.number, None)
        if broker is not None:
            self._in(process, lambda: self._end(process, broker))

    async def _end(self, process: SimulatedProcess, broker: Broker) -> None:
        try:
            for part in self._parts.pop(process, []):
                if not isinstance(part, BrokerConsumer):  # those are the broker's
                    await part.stop()
            await broker.close()
        except Exception as error:  # noqa: BLE001 - the engine's fault
            self.loop.fail(CheckFailed("stop", error))
            return
        self.note(f"{process} has stopped", None)
        self._in(None, lambda: self._again(process))

    async def _again(self, process: SimulatedProcess) -> None:
        await asyncio.sleep(self.chance.between(*RESTART))
        self._start(process.number, process.generation + 1)

    # --- notes

    def note(self, what: str, message: Message | None) -> None:
        """Something has happened, in the process whose code runs now."""
        process, self._noted_at = PROCESS.get(), self.loop.time()
        self.history.note("broker" if process is None else repr(process), self.loop.time(), what, message)


async def _attempt(name: str, function: Callable[[], Any]) -> None:
    try:
        result = function()
        if inspect.isawaitable(result):
            await result
    except Exception as error:
        raise CheckFailed(name, error) from error
