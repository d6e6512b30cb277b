"""One soak: a broker, everybody who uses it, and what is done to them."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from things_kit.brokers.connect import connect
from things_kit.testing.servers.relay import Relay
from things_kit.testing.soak.crew import Crew, names
from things_kit.testing.soak.faults import Fault, Step, Strike, faults_of, steps
from things_kit.testing.soak.plan import (
    BATCH,
    BRIDGE,
    FAR,
    FREE,
    GROUPS,
    ORDERED,
    RESULTS,
    Order,
    Plan,
    Role,
    results_of,
)
from things_kit.testing.soak.records import Follower, Journal
from things_kit.testing.soak.subjects import Subject
from things_kit.testing.soak.tally import Tally

RECOVERS_WITHIN: Final = 60.0
"""Seconds after a fault within which each group must have had a success."""

DEPLOY_EVERY: Final = 30.0
DEPLOYED: Final = "ordered-3"

UP_WITHIN: Final = 60.0
LOOK: Final = 0.5
PATIENCE: Final = 90.0
"""Seconds without progress after which what is left counts as lost."""

READERS: Final = (ORDERED, FREE, BATCH, BRIDGE)
"""The groups of the topic."""

FEW: Final = 100
"""Messages that may be left to handle when the next fault comes."""


class World:
    """All of one run.

    Attributes:
        subject: The broker.
        crew: The processes.
        journal: What the soak itself writes down.
        tally: What is known so far.
        chance: For choices that no plan has made.
        doing: What is going on, in words.
        pace: What producers are to do.
    """

    def __init__(self, subject: Subject, folder: Path, seed: int, rate: float) -> None:
        self.subject = subject
        self.folder = folder
        self.seed = seed
        self.journal = Journal(folder, "soak")
        self.tally = Tally()
        self.chance = random.Random(seed)  # noqa: S311 - to be repeated
        self.doing = "starting"
        self.pace: Order = "rest"
        self.crew = Crew(self._plan, folder, self.journal)
        self._rate = rate
        self._follower = Follower(folder)
        self._strikes = 0
        self._effect = ""

    @property
    def relay(self) -> Relay:
        """The network before the broker."""
        assert self.subject.relay is not None
        return self.subject.relay

    def now(self) -> float:
        """By the clock of the journals."""
        return time.monotonic()

    async def until(self, condition: Callable[[], bool], within: float) -> None:
        """Wait until this is so, or the time is over."""
        ends = self.now() + within
        while not condition() and self.now() < ends:  # noqa: ASYNC110 - it is the files of others that change
            await asyncio.sleep(LOOK)

    def note_effect(self, text: str) -> None:
        """The fault that is being done has had this effect."""
        self._effect = text

    # --- parts of a run

    async def declare(self) -> None:
        """Make the topics and groups."""
        topic = self.subject.topic
        async with connect(self.subject.url) as broker, connect(self._beside) as beside:
            await broker.declare(topic, READERS)
            await broker.declare(results_of(topic), [RESULTS])
            await beside.declare(topic, [FAR])
            capabilities = broker.capabilities
        across = self.subject.across
        if across is None:
            across = capabilities.lanes or capabilities.partitions
        figures = {
            "across": float(across),
            "whole group": float(self.subject.whole_group),
            "counts given back": float(self.subject.counts_given_back),
            "gives back in order": float(self.subject.gives_back_in_order),
        }
        self.journal.add("phase", text="declared", figures=figures)

    async def delete_topic(self, seconds: float) -> None:
        """Delete the topic with all that is on it, and declare it again so many seconds later, if nobody has by then."""
        async with connect(self.subject.url) as broker:
            await broker.remove(self.subject.topic)
            await asyncio.sleep(seconds)
            await broker.declare(self.subject.topic, READERS)

    async def catch_up(self) -> bool:
        """Let nothing be published until all is handled, and then everything at once; whether it was handled in time."""
        self.pace_all("rest")
        await self.until(lambda: not max(self.tally.left().values()), PATIENCE)
        caught_up = not max(self.tally.left().values())
        self.pace_all("steady")
        self.crew.order("burst")
        return caught_up

    async def start(self, who: str) -> None:
        """Start a process, and wait until it is ready."""
        name = await self.crew.start(who)
        await self.until(lambda: name in self.tally.ready or not self.crew.is_running(who), UP_WITHIN)
        if who.startswith("producer") and self.crew.is_running(who):
            self.crew.tell(who, self.pace)

    async def begin(self) -> None:
        """Everybody starts; nothing is published for a while."""
        await asyncio.gather(*map(self.start, names()))
        self._phase("rest before")
        await asyncio.sleep(self.subject.rest)
        self._phase("going")
        self.pace_all("steady")

    async def step(self, step: Step) -> None:
        """Let it run for a while, then do something to it, and see that all recover."""
        if step.idle:
            self.doing = f"silence of {step.quiet:.0f} s"
            self.pace_all("rest")
        await asyncio.sleep(step.quiet)
        self.pace_all("steady")
        if step.burst:
            self.doing = "full speed"
            self.crew.order("burst")
            await asyncio.sleep(1.0)
        if step.strike is not None:
            await self.strike(step.strike)
        elif step.idle:
            await self._until_recovered("silence")

    async def strike(self, strike: Strike) -> None:
        """Do this, then wait until all groups have recovered from it."""
        fault: Fault = faults_of(self.subject)[strike.fault]
        self._strikes += 1
        id_ = str(self._strikes)
        self.doing, self._effect = str(strike), ""
        figures = {
            "shadow": fault.shadow,
            "violent": float(fault.violent),
            "seconds": strike.seconds,
            "drops": float(fault.drops),
            "moves keys": float(fault.moves_keys),
        }
        began = self.journal.add("fault", id_, key=strike.victim, text=strike.fault, figures=figures)
        try:
            await fault.act(self, strike)
        finally:
            over = self.journal.add("over", id_, text=strike.fault)
        if fault.drops:
            self.tally.drop(began.at, over.at)
        if self._effect:
            self.journal.add("seen", id_, text=self._effect)
        await self._until_recovered(id_)

    async def _until_recovered(self, id_: str) -> None:
        self.doing = f"after {self.doing}"
        self.tally.watch(self.now())
        await self.until(lambda: len(self.tally.recovered()) == len(GROUPS), RECOVERS_WITHIN)
        recovered = self.tally.recovered()
        for group in GROUPS:
            self.journal.add("recovered", id_, group=group, figures={"seconds": recovered.get(group, -1.0)})
        await self.until(lambda: max(self.tally.left().values()) <= FEW, RECOVERS_WITHIN)
        self.doing = "quiet"

    async def finish(self) -> None:
        """Nothing more is published; wait until all is handled; then all end."""
        self.doing = "handling the rest"
        self._phase("finishing")
        await self.crew.stop_all("producer")
        await self._until_nothing_is_left()
        self.doing = "at rest"
        self._phase("rest after")
        await asyncio.sleep(self.subject.rest)
        self.doing = "ending"
        self._phase("ending")
        await self.crew.stop_all()

    async def _until_nothing_is_left(self) -> None:
        last, since = -1, self.now()
        while True:
            left = sum(self.tally.left().values()) + int(sum(self.tally.lags.values()))
            if not left:
                return
            if left != last:
                last, since = left, self.now()
            if self.now() - since > PATIENCE:
                return
            await asyncio.sleep(LOOK)

    async def deploy(self) -> None:
        """Again and again, let one process end and start anew."""
        while True:
            await asyncio.sleep(DEPLOY_EVERY)
            async with self.crew.lock(DEPLOYED):
                await self.crew.stop(DEPLOYED)
                await self.start(DEPLOYED)

    async def follow(self, show: Callable[["World"], None]) -> None:
        """Keep the tally, and show it."""
        while True:
            self.journal.add("pulse")
            self.tally.add(self._follower.news())
            show(self)
            await asyncio.sleep(LOOK)

    def pace_all(self, pace: Order) -> None:
        """Producers that are started later are told the same."""
        self.pace = pace
        self.crew.order(pace)

    def _phase(self, text: str) -> None:
        self.journal.add("phase", text=text)

    @property
    def _beside(self) -> str:
        return f"sqlite:///{self.folder / 'beside.db'}"

    def _plan(self, name: str, role: Role) -> Plan:
        return Plan(
            name=name,
            role=role,
            url=self.subject.url,
            beside=self._beside,
            folder=str(self.folder),
            topic=self.subject.topic,
            prepare=self.subject.prepare,
            long=1.3 * self.subject.lease,
            rate=self._rate,
            seed=self.seed,
            concurrency=16 if name.startswith("ordered-9") else 4,
        )


async def soak(
    subject: Subject,
    folder: Path,
    *,
    minutes: float = 15.0,
    seed: int = 1,
    rate: float = 8.0,
    script: Iterable[Step] | None = None,
    show: Callable[[World], None] = lambda _: None,
) -> None:
    """Soak a broker: all that happens is in `folder` afterwards, for `judge` to read.

    Args:
        subject: The broker, running.
        folder: Empty; where the journals go.
        minutes: For how long faults come.
        seed: Which faults, and when.
        rate: Messages a second of each of the two producers.
        script: What is done, in place of what the seed says.
        show: Called twice a second.
    """
    world = World(subject, folder, seed, rate)
    await world.declare()
    async with _kept_up(world, show):
        await world.begin()
        ends = world.now() + 60.0 * minutes
        async with _meanwhile(world.deploy):
            for step in steps(subject, seed) if script is None else script:
                if world.now() >= ends:
                    break
                await world.step(step)
            await world.crew.lock(
                DEPLOYED
            ).acquire()  # a deployment that has begun is finished, and none follows
        await world.finish()
    world.journal.close()


@asynccontextmanager
async def _kept_up(world: World, show: Callable[[World], None]) -> AsyncIterator[None]:
    try:
        async with _meanwhile(lambda: world.follow(show)):
            yield
    finally:
        await world.crew.kill_all()


@asynccontextmanager
async def _meanwhile(work: Callable[[], Coroutine[None, None, None]]) -> AsyncIterator[None]:
    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
