"""What is scheduled comes once, when it is due, whoever dies meanwhile; what is cancelled or replaced never does."""

import asyncio
import random
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from tests.testing.simulation.test_worlds import QUICK, each_of
from things_kit import Message
from things_kit.engine.broker import Broker
from things_kit.patterns.periodic import Periodic, every
from things_kit.patterns.turns import Turns
from things_kit.testing import Faults, SimulationFailed, World, reached, simulate
from things_kit.testing.simulation.models import MODELS
from things_kit.testing.simulation.models.scheduling import Timetable
from things_kit.testing.simulation.models.server import EPOCH
from things_kit.testing.simulation.search import Simulation

NAMED = ("redis", "sqlite", "postgres", "nats")
"""Whose brokers know a schedule_id."""

EARLY = {"rabbitmq": 5.0, "sqs": 5.0, "kafka": 5.0, "pubsub": 5.0}
"""Seconds by which a message may come too early where the clock of some process says that it is due: as wrong as those are."""

DEAD = Faults.only("crash", "stop", "slow_handler", "clock_skew")
"""Where nobody but the dead loses what it has in hand."""


def now() -> float:
    """The simulation's own time, which no process's clock is."""
    return asyncio.get_running_loop().time()


class Call(msgspec.Struct, eq=False):
    """One call of publish or cancel, and when it was made; it has not ended where its process died."""

    schedule_id: str
    began: float
    due: float = 0.0
    value: bytes = b""
    published: frozenset[bytes] = frozenset()
    ended: float | None = None
    answer: bool | None = None

    def is_before(self, other: "Call") -> bool:
        """Whether it was over when the other began."""
        return self.ended is not None and self.ended < other.began


class Reminders(World):
    """Two processes schedule, replace and cancel the same reminders around the time at which they are due."""

    async def setup(self) -> None:
        self.publishes: list[Call] = []
        self.cancels: list[Call] = []

    def consumers(self, broker: Broker) -> list[Any]:
        producer = broker.producer()

        async def schedule(message: Message) -> None:
            name, _, due = message.value.decode().partition(" ")
            call = Call(name, now(), due=float(due), value=b"%s of %d" % (name.encode(), len(self.publishes)))
            self.publishes.append(call)
            reminder = Message("reminders", call.value, key=name.encode())
            await producer.publish(
                reminder, at=datetime.fromtimestamp(EPOCH + call.due, UTC), schedule_id=name
            )
            call.ended = now()

        async def cancel(message: Message) -> None:
            call = Call(message.value.decode(), now(), published=self.arrived())
            self.cancels.append(call)
            call.answer = await broker.cancel("reminders", call.schedule_id)
            call.ended = now()
            reached(f"cancel is {call.answer}")

        async def remind(message: Message) -> None:
            """Nothing."""

        common: dict[str, Any] = {"group": "g", "concurrency": 4, "retry": QUICK}
        return [
            broker.consumer("schedule", handler=schedule, **common),
            broker.consumer("cancel", handler=cancel, **common),
            broker.consumer("reminders", handler=remind, **common),
        ]

    async def workload(self, producer: Any) -> None:
        for number in range(5):
            name, due = b"r-%d" % number, now() + 5.0
            plan = b"%s %f" % (name, due)
            await producer.publish_batch([Message("schedule", plan), Message("schedule", plan)])
            await asyncio.sleep((0.0, 4.98, 5.0, 5.02, 6.0)[number])
            await producer.publish(Message("cancel", name))
            if number % 2:
                await producer.publish(Message("schedule", b"%s %f" % (name, now() + 2.0)))

    def arrived(self) -> frozenset[bytes]:
        """Which reminders have come."""
        return frozenset(message.value for message in self.history.published("reminders"))

    def eventually(self) -> None:
        self.history.nothing_lost()
        arrived = self.arrived()
        for cancel in self.cancels:
            self.is_true(cancel, arrived)
        for call in self.publishes:
            others = [each for each in self.publishes if each.schedule_id == call.schedule_id]
            others.remove(call)
            self.is_alone(call, others, arrived)

    def is_true(self, cancel: Call, arrived: frozenset[bytes]) -> None:
        """A reminder whose cancel was answered by True, and that nobody scheduled meanwhile, has never come."""
        calls = [
            call
            for call in self.publishes
            if call.schedule_id == cancel.schedule_id and not cancel.is_before(call)
        ]
        if cancel.answer and all(call.is_before(cancel) for call in calls):
            for call in calls:
                assert call.value not in arrived - cancel.published, f"{call.value!r} was cancelled, and came"

    def is_alone(self, call: Call, others: list[Call], arrived: frozenset[bytes]) -> None:
        """One that was replaced in time has never come, of two at once one has, and the last one has."""
        if call.ended is None:
            return
        for other in others:
            if other.ended is None or max(call.ended, other.ended) > min(call.due, other.due):
                continue
            if call.value in arrived:
                assert not call.is_before(other), f"{call.value!r} was replaced, and came"
                assert other.value not in arrived, f"{call.value!r} and {other.value!r} have come"
        cancelled = any(
            each.schedule_id == call.schedule_id and not each.is_before(call) for each in self.cancels
        )
        if not cancelled and all(other.is_before(call) for other in others):
            reached("alone")
            assert call.value in arrived, f"{call.value!r} has never come"


class Later(World):
    """Whoever scheduled, the message comes when it is due and not before, and is lost by nobody."""

    early = 0.001

    async def setup(self) -> None:
        self.due: dict[bytes, float] = {}

    def consumers(self, broker: Broker) -> list[Any]:
        producer = broker.producer()

        async def order(message: Message) -> None:
            due = self.due.setdefault(message.value, now() + 2 * int(message.value))
            await producer.publish(
                Message("reminders", message.value), at=datetime.fromtimestamp(EPOCH + due, UTC)
            )

        async def remind(message: Message) -> None:
            assert now() >= self.due[message.value] - self.early

        common: dict[str, Any] = {"group": "g", "concurrency": 4, "retry": QUICK}
        return [
            broker.consumer("orders", handler=order, **common),
            broker.consumer("reminders", handler=remind, **common),
        ]

    async def workload(self, producer: Any) -> None:
        await producer.publish_batch([Message("orders", b"%d" % number) for number in range(10)])
        await producer.publish(Message("orders", b"20"), after=90)

    def eventually(self) -> None:
        self.history.nothing_lost()
        assert not self.history.dead_letters
        assert {message.value for message in self.history.published("reminders")} == set(self.due)
        assert b"20" in self.due


@pytest.mark.parametrize("broker", NAMED)
def test_what_is_cancelled_or_replaced_never_comes(broker: str) -> None:
    simulate(
        Reminders,
        seeds=each_of(len(NAMED)),
        broker=broker,
        sometimes=["cancel is True", "cancel is False", "alone"],
    )


def later(broker: str) -> type[Later]:
    """The world as it holds on this broker."""
    return type("Later", (Later,), {"early": EARLY.get(broker, Later.early)})


DELAYING = [name for name in MODELS if name != "sqs-fifo"]
"""FIFO queues of SQS delay nothing."""


@pytest.mark.parametrize("broker", DELAYING)
def test_what_is_scheduled_comes_when_it_is_due_whoever_dies(broker: str) -> None:
    simulate(later(broker), seeds=each_of(len(DELAYING)), broker=broker)


def replaces_nothing(timetable: Timetable, entry: Any, at: float) -> None:
    """It forgets which name an entry has."""
    timetable.add_as_it_is(msgspec.structs.replace(entry, schedule_id=None), at)  # type: ignore[attr-defined]


def cancels_nothing(timetable: Timetable, schedule_id: str) -> bool:
    """It says so all the same."""
    return any(entry.schedule_id == schedule_id for entry in timetable.upcoming(100))


@pytest.mark.parametrize(
    ("name", "mutant", "said"),
    [("add", replaces_nothing, "have come|was replaced"), ("cancel", cancels_nothing, "was cancelled")],
)
def test_a_broker_that_breaks_its_word_is_found(
    name: str, mutant: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Timetable, "add_as_it_is", Timetable.add, raising=False)
    monkeypatch.setattr(Timetable, name, mutant)
    with pytest.raises(SimulationFailed, match=said):
        simulate(Reminders, seeds=50, broker="sqlite", faults=Faults.none())


# --- every so often

APART = timedelta(seconds=10)


class Run(msgspec.Struct, eq=False):
    """One run of what runs every so often; it has not ended where its process died."""

    planned: datetime
    began: float
    ended: float | None = None


class Tick(World):
    """A function that runs every ten seconds in the group of processes, of every kind that there is."""

    kinds = tuple(
        (overlap, catch_up) for overlap in ("queue", "skip", "allow") for catch_up in ("all", "one", "none")
    )
    long = 12.0
    lasts = 80.0

    async def setup(self) -> None:
        self.overlap, self.catch_up = random.choice(self.kinds)
        reached(self.overlap)
        reached(self.catch_up)
        self.runs: list[Run] = []
        self.again: list[datetime] = []
        self.ends = 0.0

    def consumers(self, broker: Broker) -> list[Any]:
        async def tick(planned: datetime) -> None:
            run = Run(planned, now())
            self.runs.append(run)
            message = f'{{"planned":"{planned:%Y-%m-%dT%H:%M:%SZ}"'
            if any(message in row.message for row in self.history.rows):
                self.again.append(planned)
            await asyncio.sleep(self.long if len(self.runs) % 3 == 0 else 1.0)
            if len(self.runs) % 5 == 0:
                raise ConnectionError("not yet")
            run.ended = now()

        spec = every(APART, tz="UTC", name="tick", overlap=self.overlap, catch_up=self.catch_up)
        return [Periodic(broker, spec, tick, retry=QUICK)]

    async def workload(self, producer: Any) -> None:
        await asyncio.sleep(self.lasts)
        self.ends = now()

    def eventually(self) -> None:
        assert not self.history.dead_letters
        done = sorted({run.planned for run in self.runs if run.ended is not None})
        assert all(time.timestamp() % APART.total_seconds() == 0 for time in done)
        last = max(EPOCH + run.ended for run in self.runs if run.ended is not None)
        late = EPOCH + self.ends - max(done[-1].timestamp(), last)
        assert late < 90, f"nothing has run for {late:g} s"
        planned = re.findall(
            r'every-tick (?:key tick )?"(.+?)"', "\n".join(row.message for row in self.history.rows)
        )
        following = datetime.fromisoformat(max(planned))
        assert following.timestamp() > EPOCH + self.history.rows[-1].at, "nothing will ever run again"
        over = datetime.fromtimestamp(EPOCH + self.ends - 1, UTC)
        left_out = [time for time in _between(done[0], max(done[-1], over)) if time not in done]
        if left_out:
            assert (self.overlap, self.catch_up) not in {("queue", "all"), ("allow", "all")}, (
                f"{left_out[0]} was left out"
            )
            reached("left out")


class OneByOne(Tick):
    """No two runs at a time, and none again that is known as done, where nobody but the dead lets go of what it has."""

    kinds = (("queue", "all"), ("skip", "one"))
    ordered = True

    def eventually(self) -> None:
        super().eventually()
        ended = sorted((run for run in self.runs if run.ended is not None), key=lambda run: run.began)
        for one, other in pairwise(ended):
            assert one.ended is not None
            assert other.began >= one.ended, f"{other.planned} began while {one.planned} ran"
            assert other.planned >= one.planned or not self.ordered, (
                f"{other.planned} ran after {one.planned}"
            )
        assert not self.again, f"{self.again[0]} was done, as the broker knew, and ran again"


class ByTurns(OneByOne):
    """The same where no broker keeps the order: what a killed process had, or failed, may run after the next."""

    ordered = False


def _between(first: datetime, last: datetime) -> list[datetime]:
    """All planned times from the one to the other."""
    return [first + number * APART for number in range((last - first) // APART + 1)]


@pytest.mark.parametrize("broker", ["sqlite", "redis", "nats"])
def test_what_runs_every_so_often_goes_on(broker: str) -> None:
    kinds = ["queue", "skip", "allow", "all", "one", "none", "left out"]
    simulate(Tick, seeds=each_of(3), broker=broker, sometimes=kinds)


@pytest.mark.parametrize(("world", "broker"), [(OneByOne, "postgres"), (ByTurns, "redis")])
def test_one_run_follows_the_other(world: type[OneByOne], broker: str) -> None:
    simulate(world, seeds=each_of(1), broker=broker, faults=DEAD, processes=3)


def test_a_run_that_took_longer_than_until_all_that_was_planned_is_no_standstill() -> None:
    longer = type("Longer", (ByTurns,), {"lasts": 120.0})
    Simulation(longer, "redis", 3, DEAD.for_broker("redis", frozenset())).search([1075], 1, ())


def test_turns_that_are_taken_unseen_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turns, "_claims", lambda _: asyncio.sleep(0, []))
    monkeypatch.setattr(Turns, "_is_alone", lambda *_: asyncio.sleep(0, True))
    with pytest.raises(SimulationFailed, match="began while"):
        simulate(ByTurns, seeds=50, broker="redis", faults=DEAD, processes=3)
