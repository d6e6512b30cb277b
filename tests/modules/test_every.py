"""`@app.every`: one firing for each planned time, in the whole group."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import msgspec
import pytest

from tests.engine.scenario import BEGAN, VirtualWorld, virtual
from things_kit import (
    App,
    Broker,
    ConfigError,
    Message,
    RetryPolicy,
    UnsupportedError,
    WiringError,
    connect,
    module,
    provide,
)
from things_kit.engine.clock import steady
from things_kit.engine.surroundings import surroundings
from things_kit.modules import config, memory, sqlite
from things_kit.patterns.periodic import Done, Every, Periodic, every
from things_kit.testing.conformance.waiting import eventually

TICK = timedelta(milliseconds=300)


class Log:
    """What ran when, kept apart from all processes."""

    def __init__(self) -> None:
        self.planned: list[datetime] = []
        self.running = self.most = 0


@pytest.fixture(autouse=True)
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("sqlite:\n  path: events.db\n")


def periodic(broker: Broker, call: Any, *, name: str = "tick", when: Any = TICK, **said: Any) -> Periodic:
    spec = every(when, tz="UTC", name=name, **{"overlap": "skip", "catch_up": "one", **said})
    return Periodic(broker, spec, call, retry=RetryPolicy(attempts=3, first=0.01))


def on_the_dot(times: list[datetime], apart: timedelta = TICK) -> bool:
    epoch = datetime.fromtimestamp(0, UTC)
    return all((time - epoch) % apart == timedelta(0) for time in times)


async def test_a_function_of_an_app_runs_with_the_planned_time_and_what_it_needs() -> None:
    app = App(config.module, sqlite.module, provide(Log))
    seen: list[Log] = []

    @app.every(TICK, overlap="queue", catch_up="all")
    async def clean(when: datetime, log: Log) -> None:
        log.planned.append(when)
        seen.append(log)

    async with app:
        await eventually(lambda: len(seen) >= 3, 10, "it ran three times")
    times = seen[0].planned
    assert times == sorted(set(times))
    assert on_the_dot(times)
    assert times[1] - times[0] == TICK


async def test_methods_plain_functions_and_modules_can_run_so() -> None:
    ran: set[str] = set()
    jobs = module("jobs")

    @jobs.every(TICK, name="plain")
    def plain() -> None:
        ran.add("plain")

    class Reports:
        @jobs.every("* * * * * *", name="method")
        async def send(self, when: datetime) -> None:
            ran.add("method")

    async def later(word: str) -> None:
        ran.add(word)

    @jobs.every(TICK, name="wrapped")
    def wrapped() -> Awaitable[None]:
        return later("wrapped")

    app = App(config.module, sqlite.module, jobs, provide(Reports))
    async with app:
        await eventually(lambda: ran == {"plain", "method", "wrapped"}, 10, "all ran")


async def test_several_processes_run_each_planned_time_once(tmp_path: Path) -> None:
    url, log = f"sqlite:///{tmp_path}/events.db", Log()

    async def call(planned: datetime) -> None:
        log.running += 1
        log.most = max(log.most, log.running)
        await asyncio.sleep(0.01)
        log.planned.append(planned)
        log.running -= 1

    brokers = [connect(url) for _ in range(4)]
    for broker in brokers:
        await broker.open()
    parts = [periodic(broker, call) for broker in brokers]
    await asyncio.gather(*(part.start() for part in parts))
    await eventually(lambda: len(log.planned) >= 3, 15, "it ran three times")
    await parts[0].stop()
    await parts[1].stop()
    count = len(log.planned)
    await eventually(lambda: len(log.planned) >= count + 2, 15, "the others go on")
    await asyncio.gather(*(part.stop() for part in parts[2:]))
    for broker in brokers:
        await broker.close()

    assert len(log.planned) == len(set(log.planned))
    assert log.most == 1
    steps = {later - earlier for earlier, later in zip(log.planned, log.planned[1:], strict=False)}
    assert all(step % TICK == timedelta(0) for step in steps)


@virtual(wall_clock=True)
async def test_a_run_that_fails_is_tried_again_and_becomes_a_dead_letter() -> None:
    seen: list[datetime] = []

    async def call(planned: datetime) -> None:
        seen.append(planned)
        if planned == seen[0]:
            raise ValueError("never")

    async with connect("memory://") as broker, periodic(broker, call):
        await eventually(lambda: len(set(seen)) >= 2, 10, "the next one ran")
        assert seen.count(seen[0]) == 3
        assert await broker.lag("every-tick-dlq", group="dead-letters") == 1


def now() -> datetime:
    """The time that is virtual in some of the tests."""
    return datetime.fromtimestamp(steady(), UTC)


class TenMinutes:
    """Planned times of which none comes while a test runs: the last one was five minutes ago."""

    apart = timedelta(minutes=10)

    def __init__(self) -> None:
        self._base = now() - timedelta(minutes=5)

    def latest(self, time: datetime) -> datetime:
        return self._base + (time - self._base) // self.apart * self.apart

    def following(self, time: datetime) -> datetime:
        return self.latest(time) + self.apart


async def after_a_pause(broker: Broker, missed: int, **said: Any) -> list[datetime]:
    """What runs at once when processes were away for so many planned times."""
    seen: list[datetime] = []

    async def call(planned: datetime) -> None:
        seen.append(planned)

    plan = TenMinutes()
    part = Periodic(broker, Every("tick", plan, **said), call)
    done = plan.latest(now()) - missed * plan.apart
    await part._remember(Done(done, done, done + timedelta(seconds=1)))
    async with part:
        await asyncio.sleep(60)  # what is to run at once
    assert all(time > done for time in seen)
    return seen


@pytest.mark.parametrize(("catch_up", "count"), [("one", 1), ("all", 4), ("none", 0)])
@virtual(wall_clock=True)
async def test_what_was_missed_is_made_up_for_as_was_said(catch_up: str, count: int) -> None:
    async with connect("memory://") as broker:
        seen = await after_a_pause(broker, 4, catch_up=catch_up)
        assert len(seen) == len(set(seen)) == count
        if catch_up == "one":
            assert now() - seen[0] < timedelta(minutes=10)
        upcoming = [
            each for each in await broker.schedules("every-tick") if "kind" not in each.message.headers
        ]
        assert len(upcoming) == 1
        assert upcoming[0].due > now()


@virtual(wall_clock=True)
async def test_the_first_start_ever_makes_up_for_nothing() -> None:
    seen: list[datetime] = []

    async def call(planned: datetime) -> None:
        seen.append(planned)

    async with (
        connect("memory://") as broker,
        periodic(broker, call, when=timedelta(hours=1), catch_up="all"),
    ):
        await asyncio.sleep(60)  # what is to run at once
        assert seen == []


class HoursAround(VirtualWorld):
    """The wall clock begins three hours before a moment."""

    def __init__(self, moment: datetime) -> None:
        self.ahead = (moment - timedelta(hours=3)).timestamp() - BEGAN


@pytest.mark.parametrize("when", ["0,30 * * * *", "30 2 * * *"], ids=["half hours", "daily"])
@pytest.mark.parametrize("change", ["2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z"], ids=["spring", "autumn"])
@virtual
async def test_two_processes_fire_once_for_each_planned_time_though_clocks_change_while_nobody_is_there(
    change: str, when: str
) -> None:
    changed, hour, berlin = datetime.fromisoformat(change), timedelta(hours=1), ZoneInfo("Europe/Berlin")
    surroundings.set(HoursAround(changed))
    spec = every(when, tz="Europe/Berlin", name="tick", overlap="queue", catch_up="all")
    url, seen = f"memory://{uuid4().hex}", list[datetime]()

    async def call(planned: datetime) -> None:
        seen.append(planned)

    async def run_until(time: datetime) -> None:
        async with (
            connect(url) as one,
            connect(url) as other,
            Periodic(one, spec, call),
            Periodic(other, spec, call),
        ):
            await asyncio.sleep((time - now()).total_seconds())

    await run_until(changed - 2 * hour)
    await asyncio.sleep(4 * 3600)
    await run_until(changed + 4.2 * hour)
    if when == "30 2 * * *":
        assert [planned.astimezone(berlin).date() for planned in seen] == [changed.date()]
    else:
        assert len(seen) == 14
        assert {later - earlier for earlier, later in pairwise(seen)} == {hour / 2}


@pytest.mark.parametrize("overlap", ["skip", "queue", "allow"])
@virtual(wall_clock=True)
async def test_runs_overlap_as_was_said(overlap: str) -> None:
    log = Log()

    async def call(planned: datetime) -> None:
        log.planned.append(planned)
        log.running += 1
        log.most = max(log.most, log.running)
        await asyncio.sleep(2.2 * TICK.total_seconds() if len(log.planned) == 1 else 0)
        log.running -= 1

    async with connect("memory://") as broker, periodic(broker, call, overlap=overlap):
        await eventually(lambda: len(log.planned) >= 4, 15, "it ran four times")
    steps = [later - earlier for earlier, later in zip(log.planned, log.planned[1:], strict=False)]
    assert log.most == (2 if overlap == "allow" else 1)
    assert steps[0] == (3 * TICK if overlap == "skip" else TICK)
    assert set(steps[1:]) == {TICK}


@virtual(wall_clock=True)
async def test_what_was_planned_otherwise_is_taken_back() -> None:
    async def call(planned: datetime) -> None: ...

    async with connect("memory://") as broker:
        async with periodic(broker, call, when="0 0 1 1 *"):
            pass
        async with periodic(broker, call, when="30 12 * * *"):
            pass
        due = [each.due for each in await broker.schedules("every-tick")]
    assert [(time.hour, time.minute) for time in due] == [(12, 30)]


@virtual(wall_clock=True)
async def test_who_dies_while_it_takes_back_an_old_plan_leaves_the_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def call(planned: datetime) -> None: ...

    async def die(*_: Any) -> bool:
        raise KeyError("killed")

    async with connect("memory://") as broker:
        async with periodic(broker, call, when="0 0 1 1 *"):
            pass
        with monkeypatch.context() as patch:
            patch.setattr(broker, "cancel", die)
            with pytest.raises(KeyError):
                await periodic(broker, call, when="30 12 * * *").start()
        assert (12, 30) in {(each.due.hour, each.due.minute) for each in await broker.schedules("every-tick")}
        async with periodic(broker, call, when="30 12 * * *"):
            pass
        due = [each.due for each in await broker.schedules("every-tick")]
    assert [(time.hour, time.minute) for time in due] == [(12, 30)]


@virtual(wall_clock=True)
async def test_a_firing_that_came_twice_runs_once() -> None:
    seen: list[datetime] = []

    async def call(planned: datetime) -> None:
        seen.append(planned)

    async with connect("memory://") as broker, periodic(broker, call):
        await eventually(lambda: len(seen) >= 1, 10, "it ran")
        again = Message("every-tick", msgspec.json.encode(seen[0]), b"tick")
        await broker.producer().publish(again)
        await eventually(lambda: len(seen) >= 3, 10, "it goes on")
    assert len(seen) == len(set(seen))


@virtual(wall_clock=True)
async def test_who_ends_a_run_long_after_others_went_on_takes_nothing_back() -> None:
    """As a process does that stood still: what the others have done since stays done."""
    began, goes_on = asyncio.Event(), asyncio.Event()

    async def call(planned: datetime) -> None:
        began.set()
        await goes_on.wait()

    async with connect("memory://") as broker:
        slow, other = (periodic(broker, call, when=timedelta(seconds=1)) for _ in range(2))
        async with slow:
            await asyncio.wait_for(began.wait(), 10)
            since = now() + timedelta(hours=1)
            await other._remember(Done(since, since, since))
            goes_on.set()
            await eventually(lambda: slow.consumer.handled, 10, "its run has ended")
            done, _ = await other._kept()
            assert done[-1].planned == since


@virtual(wall_clock=True)
async def test_no_time_is_left_out_where_another_process_has_planned_a_later_first_one() -> None:
    seen: list[datetime] = []

    async def call(planned: datetime) -> None:
        seen.append(planned)

    async with (
        connect("memory://") as broker,
        periodic(broker, call, overlap="queue", catch_up="all") as part,
    ):
        await eventually(lambda: seen, 10, "it ran")
        await part._schedule(seen[-1] + 3 * TICK)
        await eventually(lambda: len(seen) >= 4, 10, "it goes on")
    assert {later - earlier for earlier, later in pairwise(seen)} == {TICK}


# --- what cannot be


@pytest.mark.parametrize(
    ("when", "said", "sentence"),
    [
        ("* *", {}, "is no cron expression"),
        ("* * * * *", {"tz": "Mars/Base"}, "no time zone 'Mars/Base'"),
        (TICK, {"overlap": "often"}, "overlap must be one of"),
        (TICK, {"catch_up": "some"}, "catch_up must be one of"),
        (5, {}, "a cron expression or a timedelta"),
        (TICK, {"name": ""}, "must be a name; it is ''"),
    ],
    ids=["cron", "zone", "overlap", "catch_up", "number", "name"],
)
def test_a_wrong_plan_is_said_at_once(when: Any, said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        App(config.module, memory.module).every(when, **said)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"retry": 5}, "clean: retry must be a RetryPolicy; it is 5"),
        ({"timeout": -1}, "clean: timeout must be a duration"),
        ({"dead_letter": 5}, "clean: dead_letter must be"),
        (
            {"concurrency": 3},
            "clean: every has no argument 'concurrency'; known are retry, dead_letter, timeout",
        ),
    ],
    ids=["retry", "timeout", "dead_letter", "unknown"],
)
def test_a_wrong_argument_is_found_before_the_start(said: dict[str, Any], sentence: str) -> None:
    app = App(config.module, memory.module)

    async def clean() -> None: ...

    app.every(TICK, **said)(clean)
    with pytest.raises(WiringError, match=sentence):
        app.check()


def test_two_of_one_name_are_refused() -> None:
    app = App(config.module, memory.module)

    @app.every(TICK, name="clean")
    async def one() -> None: ...

    with pytest.raises(ConfigError, match="another 'clean'"):

        @app.every(TICK, name="clean")
        async def two() -> None: ...


async def test_two_of_one_name_in_two_modules_are_found_at_start() -> None:
    jobs = module("jobs")
    app = App(config.module, memory.module, jobs)

    @jobs.every(TICK, name="clean")
    async def one() -> None: ...

    @app.every(TICK, name="clean")
    async def two() -> None: ...

    with pytest.raises(WiringError, match="both run every so often as 'clean'"):
        async with app:
            pass


async def test_a_broker_that_names_nothing_for_later_is_refused() -> None:
    async def call(planned: datetime) -> None: ...

    async with connect("memory://") as broker:
        broker._driver.capabilities = msgspec.structs.replace(broker.capabilities, schedule_ids=False)
        with pytest.raises(UnsupportedError, match="names what it keeps until later"):
            await periodic(broker, call).start()


async def test_an_app_says_what_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "things_kit.app")
    app = App(config.module, sqlite.module)

    @app.every("0 3 * * *", tz="Europe/Berlin")
    async def nightly() -> None: ...

    async with app:
        pass
    said = [record.getMessage() for record in caplog.records]
    assert any("nightly at 0 3 * * * Europe/Berlin from sqlite:" in line for line in said)


def test_the_decorator_returns_the_function(written: Callable[[str], None]) -> None:
    async def function() -> None: ...

    assert App(config.module).every(TICK)(function) is function
