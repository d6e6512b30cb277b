"""One at a time in all processes, by claims that are scheduled messages: where a broker keeps no order across processes."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest

from tests.engine.scenario import virtual
from things_kit import Broker, RetryPolicy, connect
from things_kit.engine.driver import ConnectionLost
from things_kit.middleware import Later
from things_kit.patterns.periodic import Periodic, every
from things_kit.patterns.turns import Turns
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.redis import RedisServer

redis = shared(RedisServer, "redis")
nats = shared(NATSServer, "nats")

TOPIC = "every-tick"
PLANNED = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = 30.0


async def opened() -> Broker:
    """A broker whose leases last for 30 s, and which knows the topic."""
    broker = connect("memory://")
    await broker.open()
    await broker.declare(TOPIC)
    return broker


def turns_of(broker: Broker) -> Turns:
    return Turns(broker, broker.producer(), TOPIC)


def far(broker: Broker, chance: random.Random) -> None:
    """Have every call take its time, there and back, so that those of several processes interleave."""
    driver: Any = broker._driver

    def slowed(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def slow(*arguments: Any) -> Any:
            await asyncio.sleep(chance.random() / 100)
            answer = await call(*arguments)
            await asyncio.sleep(chance.random() / 100)
            return answer

        return slow

    for name in ("schedule", "cancel", "upcoming"):
        setattr(driver, name, slowed(getattr(driver, name)))


@pytest.mark.parametrize("seed", range(20))
@virtual
async def test_no_two_have_their_turn_at_once_and_everybody_has_it_soon(seed: int) -> None:
    chance, broker = random.Random(seed), await opened()
    far(broker, chance)
    running, most, taken = 0, 0, [0] * 4

    async def process(number: int) -> None:
        nonlocal running, most
        turns = turns_of(broker)
        while taken[number] < 5:
            with suppress(Later):
                async with turns.turn(PLANNED + timedelta(seconds=chance.randrange(2))):
                    running, taken[number] = running + 1, taken[number] + 1
                    most = max(most, running)
                    await asyncio.sleep(chance.choice((0.0, 0.01, 2.0)))
                    running -= 1
            await asyncio.sleep(chance.random())

    async with asyncio.timeout(300):
        await asyncio.gather(*(process(number) for number in range(4)))
    assert most == 1
    assert await broker.schedules(TOPIC) == []
    await broker.close()


@virtual
async def test_of_two_that_begin_at_once_the_one_that_was_planned_first_has_its_turn() -> None:
    broker = await opened()
    far(broker, random.Random(1))
    had: list[datetime] = []

    async def take(planned: datetime) -> None:
        with suppress(Later):
            async with turns_of(broker).turn(planned):
                had.append(planned)
                await asyncio.sleep(5)

    await asyncio.gather(take(PLANNED + timedelta(hours=1)), take(PLANNED))
    assert had == [PLANNED]
    await broker.close()


@virtual
async def test_a_turn_lasts_as_long_as_it_takes() -> None:
    broker = await opened()
    async with turns_of(broker).turn(PLANNED):
        for _ in range(20):
            await asyncio.sleep(LEASE / 4)
            with pytest.raises(Later):
                async with turns_of(broker).turn(PLANNED):
                    pass
    async with turns_of(broker).turn(PLANNED):
        pass
    await broker.close()


@virtual
async def test_whoever_waits_looks_soon_and_then_once_a_second() -> None:
    broker, waiting = await opened(), 0.0
    other, looks = turns_of(broker), list[float]()
    async with turns_of(broker).turn(PLANNED):
        while waiting < 20:
            with pytest.raises(Later) as raised:
                async with other.turn(PLANNED):
                    pass
            looks.append(raised.value.wait)
            waiting += raised.value.wait
            await asyncio.sleep(raised.value.wait)
    assert looks[0] < 0.1
    assert looks[-1] == 1.0
    assert looks == sorted(looks)
    assert len(looks) < 40
    await broker.close()


@virtual
async def test_a_run_that_fails_gives_its_turn_up_at_once() -> None:
    broker = await opened()
    with pytest.raises(ValueError, match="no"):
        async with turns_of(broker).turn(PLANNED):
            raise ValueError("no")
    async with turns_of(broker).turn(PLANNED):
        pass
    await broker.close()


@virtual
async def test_whoever_is_cancelled_while_it_begins_leaves_no_claim() -> None:
    broker = await opened()
    far(broker, random.Random(1))

    async def take() -> None:
        async with turns_of(broker).turn(PLANNED):
            await asyncio.sleep(60)

    for number in range(1, 20):
        beginning = asyncio.create_task(take())
        await asyncio.sleep(number / 250)
        beginning.cancel()
        await asyncio.wait([beginning])
        await asyncio.sleep(0.02)  # a claim that was on its way has come
        beginning = asyncio.create_task(take())
        await asyncio.sleep(0.1)
        assert not beginning.done(), "it has its turn"
        beginning.cancel()
        await asyncio.wait([beginning])
    await broker.close()


@virtual
async def test_a_lost_renewal_ends_no_run_and_a_claim_that_stays_ends_with_its_lease(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = connect("memory://?publish_timeout=1")
    await broker.open()
    await broker.declare(TOPIC)
    driver: Any = broker._driver
    schedule, cancel = driver.schedule, driver.cancel

    async def lost(*_: Any) -> None:
        raise ConnectionLost("the cable was cut")

    async with turns_of(broker).turn(PLANNED):
        driver.schedule = driver.cancel = lost
        await asyncio.sleep(LEASE / 2)
    driver.schedule, driver.cancel = schedule, cancel
    said = [record.getMessage() for record in caplog.records if record.name == "things_kit.every"]
    assert "could not be renewed" in said[0]
    assert "waits until a claim has ended" in said[-1]
    with pytest.raises(Later):
        async with turns_of(broker).turn(PLANNED):
            pass
    await asyncio.sleep(LEASE)
    async with turns_of(broker).turn(PLANNED):
        pass
    await broker.close()


@virtual
async def test_whose_clock_is_behind_by_a_lease_never_runs_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await opened()
    monkeypatch.setattr(
        "things_kit.engine.producer.steady", lambda: datetime.now(UTC).timestamp() - 2 * LEASE
    )
    caplog.set_level(logging.WARNING, "things_kit.every")
    with pytest.raises(Later):
        async with turns_of(broker).turn(PLANNED):
            pass
    assert "this clock is behind" in caplog.text
    await broker.close()


# --- runs of processes

TICK = timedelta(milliseconds=200)


class Ledger:
    """What ran when, in whatever process."""

    def __init__(self, long: float = 0.0) -> None:
        self.planned: list[datetime] = []
        self.during: list[tuple[datetime, datetime]] = []
        self.running = self.most = 0
        self._long = long

    async def run(self, planned: datetime) -> None:
        began = datetime.now(UTC)
        self.running += 1
        self.most = max(self.most, self.running)
        self.planned.append(planned)
        await asyncio.sleep(self._long if len(self.planned) == 1 else 0.01)
        self.running -= 1
        self.during.append((began, datetime.now(UTC)))


def periodic(broker: Broker, call: Any, name: str, **said: Any) -> Periodic:
    spec = every(TICK, tz="UTC", name=name, **{"overlap": "queue", "catch_up": "all", **said})
    return Periodic(broker, spec, call, retry=RetryPolicy(attempts=3, first=0.01))


async def runs(brokers: list[Broker], ledger: Ledger, name: str, count: int, **said: Any) -> None:
    """Let processes run until so many planned times have come."""
    parts = [periodic(broker, ledger.run, name, **said) for broker in brokers]
    await asyncio.gather(*(part.start() for part in parts))
    await eventually(lambda: len(ledger.planned) >= count, 15, "they ran")
    await asyncio.gather(*(part.stop() for part in parts))


@pytest.mark.parametrize(("kind", "overlap"), [("redis", "queue"), ("redis", "skip"), ("nats", "queue")])
async def test_runs_of_several_processes_follow_one_another(
    request: pytest.FixtureRequest, kind: str, overlap: str
) -> None:
    ledger = Ledger(long=2.2 * TICK.total_seconds())
    catch_up = "all" if overlap == "queue" else "one"
    async with AsyncExitStack() as stack:
        url = request.getfixturevalue(kind).url
        brokers = [await stack.enter_async_context(connect(url)) for _ in range(3)]
        if not brokers[0].capabilities.schedule_ids:
            pytest.skip("a server of NATS from 2.12 on")
        await runs(brokers, ledger, uuid4().hex, 4, overlap=overlap, catch_up=catch_up)
    steps = [later - earlier for earlier, later in pairwise(ledger.planned)]
    assert ledger.most == 1
    if overlap == "queue":
        assert set(steps) == {TICK}
    else:  # how many are left out is the machine's business, as is how long each takes
        assert steps[0] >= 3 * TICK
        assert all(step > timedelta(0) and step % TICK == timedelta(0) for step in steps)
        assert not [time for time in ledger.planned for begin, end in ledger.during if begin <= time < end]
