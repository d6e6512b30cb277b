"""Receiving from SQLite: lanes, leases, waiting, and what is given back."""

# ruff: noqa: ASYNC220 - a test may block for the moment that a small file takes
import asyncio
import contextlib
import gc
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.brokers.sqlite.given import (
    Open,
    consistent,
    exactly,
    join,
    message,
    names,
    publish,
    run_in_thread,
    select,
    take,
)
from things_kit.brokers.sqlite import worker as sqlite_worker
from things_kit.brokers.sqlite.receiver import SQLiteReceiver
from things_kit.engine.driver import ConnectionLost, Delivery, Marking, Release
from things_kit.testing.conformance.steady import Pulse

CONSUMER = """
import asyncio, sys
from things_kit.brokers.sqlite.driver import SQLiteDriver
from things_kit.engine.collected import collect
from things_kit.engine.driver import Subscription
from things_kit.engine.url import BrokerURL

async def main():
    driver = SQLiteDriver.from_url(BrokerURL.parse(sys.argv[1]))
    await driver.open()
    receiver = await collect(driver, Subscription(topic="t", group="g"))
    own = await collect(driver, Subscription(topic="t", group="own", ephemeral=True))
    print(len(await receiver.receive(3, 10)), flush=True)
    await receiver.receive(1, 60)

asyncio.run(main())
"""


async def test_a_receiver_that_found_the_file_locked_when_it_left_has_left_when_that_is_free(
    connect: Open, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it held would be with nobody until its lease is over."""
    broker, other = await connect("?lease=300"), await connect("?lease=300")
    receiver, rest = await join(broker), await join(other)
    await publish(broker, "a1", "-2")
    assert names(await take(receiver)) == ["a1", "-2"]
    monkeypatch.setattr(sqlite_worker, "LOCK_PATIENCE", 0.05)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConnectionLost, match="locked by another process"):
            await receiver.close()
        locker.execute("COMMIT")
    monkeypatch.undo()
    assert names(await exactly(rest, 2, 60)) == ["a1", "-2"]
    consistent(file)


async def test_a_lane_flows_on_at_its_receiver_and_nowhere_else(connect: Open, file: Path) -> None:
    broker = await connect()
    one, two = await join(broker), await join(broker)
    await publish(broker, "a1", "b1", "a2", "a3")
    held = await take(one, 1)
    assert names(await take(two)) == ["b1"]
    consistent(file)
    await one.settle(held, [])
    assert names(await take(two)) == ["a2", "a3"]
    await publish(broker, "a4", "-1", "-2")
    assert names(await take(one)) == ["-1", "-2"]
    consistent(file)


async def test_a_released_message_holds_back_its_lane_until_it_is_settled(connect: Open, file: Path) -> None:
    broker = await connect()
    one, two = await join(broker), await join(broker)
    await publish(broker, "a1", "a2", "b1", "a3")
    a1, a2, b1 = await take(one, 3)
    began = time.monotonic()
    await one.settle([b1], [Release(a2, 30, 2), Release(a1, 1.0, 2)])
    await publish(broker, "a4", "b2")
    consistent(file)
    assert names(await take(two)) == ["b2"]
    (again,) = await take(two, wait=5)
    assert time.monotonic() - began >= 1.0
    assert (again.message.value, again.message.attempt) == (b"a1", 2)
    assert await take(one) == []
    await two.settle([again], [])
    assert names(await take(one, wait=5)) == ["a2", "a3", "a4"]
    consistent(file)


async def test_later_releases_of_a_lane_step_behind_earlier_ones(connect: Open, file: Path) -> None:
    broker = await connect()
    receiver = await join(broker)
    await publish(broker, "a1", "a2", "a3")
    a1, a2, a3 = await take(receiver)
    await receiver.settle([], [Release(a3)])
    await receiver.settle([], [Release(a1, 30)])
    await receiver.settle([], [Release(a2)])
    consistent(file)
    assert await take(receiver) == []


async def test_a_message_released_aside_lets_its_lane_go_on(connect: Open, file: Path) -> None:
    broker = await connect()
    one, two = await join(broker), await join(broker)
    await publish(broker, "a1", "a2")
    held = await take(one, 1)
    assert await take(two) == []
    await one.settle([], [Release(held[0], 0.5, 4, aside=True)])
    later = await take(two, 1)
    assert names(later) == ["a2"]
    (again,) = await take(one, wait=20)
    assert (again.message.value, again.message.attempt) == (b"a1", 4)
    consistent(file)


async def test_a_partition_is_one_lane(connect: Open, file: Path) -> None:
    broker = await connect()
    one, two = await join(broker, ordering="partition"), await join(broker, ordering="partition")
    await publish(broker, "a1", "-1", "b1", "b2")
    first, second = await take(one, 2)
    assert await take(two) == []
    await one.settle([], [Release(first, 1.0), Release(second)])
    assert await take(one) == []
    again = await take(two, wait=5)
    assert names(again) == ["a1"]
    await two.settle(again, [])
    assert names(await take(two, wait=5)) == ["-1", "b1", "b2"]
    consistent(file)


async def test_without_order_nothing_waits(connect: Open) -> None:
    broker = await connect()
    one, two = await join(broker, ordering="none"), await join(broker, ordering="none")
    await publish(broker, "a1", "a2", "a3")
    (held,) = await take(one, 1)
    assert names(await take(two, 1)) == ["a2"]
    await one.settle([], [Release(held, 30)])
    assert names(await take(two)) == ["a3"]


async def test_a_long_lane_is_promoted_in_parts_and_in_order(connect: Open, file: Path) -> None:
    broker = await connect()
    receiver = await join(broker)
    await publish(broker, *(f"a{number}" for number in range(350)))
    first = await take(receiver, 1000)
    await receiver.settle([], [Release(one) for one in first])
    got: list[str] = []
    while page := await take(receiver, 1000):
        consistent(file)
        got += names(page)
        await receiver.settle(page, [])
    assert got == [f"a{number}" for number in range(350)]


async def test_a_stuck_lane_costs_the_others_nothing(connect: Open) -> None:
    broker = await connect("?synchronous=normal")
    receiver = await join(broker)
    await publish(broker, "a")
    (stuck,) = await take(receiver)
    await receiver.settle([], [Release(stuck, 60)])
    for _ in range(3):
        assert not any(await broker.send([message(b"", b"a")] * 10_000))
    await publish(broker, *("b" for _ in range(300)))
    others = await exactly(receiver, 300)
    assert {one.message.key for one in others} == {b"b"}
    await receiver.settle(others, [])
    steps = []
    await run_in_thread(
        broker, lambda store: store.connection.set_progress_handler(lambda: steps.append(1), 1000)
    )
    for _ in range(100):
        await publish(broker, "b")
        page = await take(receiver)
        await receiver.settle(page, [])
        assert len(page) == 1
    await run_in_thread(broker, lambda store: store.connection.set_progress_handler(None, 1000))
    assert len(steps) < 300, "thousands of SQLite's instructions for each message: it scans what waits"


async def test_random_histories_keep_every_promise(connect: Open, file: Path) -> None:  # noqa: C901
    chance = random.Random(7)
    drivers = [await connect("?synchronous=normal"), await connect("?synchronous=normal")]
    await drivers[0].declare("t", ["g"])
    receivers = [await join(chance.choice(drivers)) for _ in range(3)]
    held: list[list[Delivery]] = [[] for _ in receivers]
    numbers = dict.fromkeys("abc", 0)
    settled: dict[bytes, list[int]] = {b"a": [], b"b": [], b"c": []}

    def note(done: Sequence[Delivery]) -> None:
        for one in done:
            assert one.message.key is not None
            settled[one.message.key].append(int(one.message.value[1:]))

    for _ in range(600):
        place = chance.randrange(len(receivers))
        match chance.choice(
            ["publish", "publish", "receive", "receive", "settle", "settle", "settle", "move"]
        ):
            case "publish":
                keys = chance.choices("abc", k=chance.randrange(1, 6))
                batch = []
                for key in keys:
                    batch.append(f"{key}{numbers[key]}")
                    numbers[key] += 1
                await publish(chance.choice(drivers), *batch)
            case "receive":
                held[place] += await take(receivers[place], chance.randrange(1, 8))
            case "settle":
                # As the engine does: of each lane the first so many are done, and the rest goes back.
                done: list[Delivery] = []
                back: list[Release] = []
                for lane_key in (b"a", b"b", b"c"):
                    lane = sorted(
                        (one for one in held[place] if one.message.key == lane_key), key=lambda one: one.token
                    )
                    count = chance.randrange(len(lane) + 1)
                    done += lane[:count]
                    if chance.random() < 0.4:
                        back += [Release(one, chance.choice([0, 0.001]), 2) for one in lane[count:]]
                gone = {one.token for one in done} | {one.delivery.token for one in back}
                held[place] = [one for one in held[place] if one.token not in gone]
                chance.shuffle(back)
                await receivers[place].settle(done, back)
                note(done)
            case _:
                await receivers[place].close()
                held[place] = []
                receivers[place] = await join(chance.choice(drivers))
        consistent(file)
    for receiver, left in zip(receivers, held, strict=True):
        await receiver.settle(left, [])
        note(left)
    while await drivers[0].lag("t", "g"):
        for receiver in receivers:
            page = await take(receiver)
            await receiver.settle(page, [])
            note(page)
    assert settled == {key.encode(): list(range(count)) for key, count in numbers.items()}


async def test_closing_a_receiver_gives_back_what_it_held(connect: Open, file: Path) -> None:
    broker = await connect()
    one, two = await join(broker), await join(broker)
    await publish(broker, "a1", "b1", "a2")
    await take(one)
    waiting = asyncio.ensure_future(exactly(two, 2))
    await one.close()
    again = await waiting
    assert names(again) == ["a1", "b1"]
    assert {each.message.attempt for each in again} == {1}
    consistent(file)


async def test_a_killed_process_loses_its_lease_and_no_message(connect: Open, file: Path) -> None:
    broker = await connect("?lease=2")
    await broker.declare("t", ["g"])
    await publish(broker, "a1", "a2", "b1")
    source = str(Path(sqlite_worker.__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, "-c", CONSUMER, f"sqlite:///{file}?lease=2"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    ) as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"3\n"
        receiver = await join(broker)
        assert await take(receiver) == []
        process.send_signal(signal.SIGKILL)
    again = await exactly(receiver, 2)
    assert sorted(names(again)) == ["a1", "b1"], "a lane comes back one by one"
    assert {each.message.attempt for each in again} == {2}
    await receiver.settle(again, [])
    assert names(await take(receiver, wait=5)) == ["a2"]
    assert select(file, "SELECT name FROM things_kit_consumer_group") == [("g",)]
    consistent(file)


async def test_extending_keeps_and_forgetting_to_loses(connect: Open, file: Path) -> None:
    broker, other = await connect("?lease=1"), await connect("?lease=1")
    one, two = await join(broker), await join(other)
    await publish(broker, "a1")
    held = await take(one)
    for _ in range(4):
        assert await take(two, wait=0.3) == []
        await one.extend(held)
    (again,) = await take(two, wait=5)
    assert again.message.attempt == 2
    await one.settle(held, [])
    assert await broker.lag("t", "g") == 1
    assert isinstance(one.receiver, SQLiteReceiver)
    one.receiver._member.held = 1
    with pytest.raises(ConnectionLost, match="lease"):
        await one.extend(held)
    await one.close()
    consistent(file)


async def test_a_call_that_was_cancelled_and_fails_afterwards_leaves_no_error_that_nobody_has_seen(
    connect: Open, file: Path
) -> None:
    """A soak found one on the standard error of a process that had been frozen for longer than its lease."""
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    broker = await connect()
    receiver = await join(broker)
    await publish(broker, "a1")
    await take(receiver)
    assert isinstance(receiver.receiver, SQLiteReceiver)
    waiting = asyncio.ensure_future(receiver.receiver.fetch(1, 30))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    request = receiver.receiver._request
    assert request is not None
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as another:
        another.execute("DELETE FROM things_kit_receiver")
    await publish(broker, "b1")
    await asyncio.wait({request.future})
    await receiver.receiver.close()
    del waiting, request, receiver
    gc.collect()
    assert said == []


async def test_an_idle_receiver_whose_lease_ran_out_just_goes_on(connect: Open) -> None:
    broker = await connect("?lease=0.05")
    one, two = await join(broker), await join(broker)
    assert await take(two, wait=0.2) == []
    await publish(broker, "a1")
    assert names(await take(one)) == ["a1"]


async def test_waiting_ends_with_a_publish_of_another_process(connect: Open) -> None:
    here, there = await connect(), await connect()
    receiver = await join(here)
    delays = []
    for number in range(20):
        waiting = asyncio.ensure_future(receiver.receive(1, 10))
        await asyncio.sleep(0)
        await publish(there, f"a{number}")
        sent = time.monotonic()
        await receiver.settle(await waiting, [])
        delays.append(time.monotonic() - sent)
    assert sorted(delays)[10] < 0.05


async def test_waiting_ends_with_its_time(connect: Open) -> None:
    receiver = await join(await connect())
    began = time.monotonic()
    with Pulse() as pulse:
        assert await take(receiver, wait=0.1) == []
    assert time.monotonic() - began >= 0.1
    assert pulse.ran < 1


async def test_many_wait_and_each_message_reaches_one(connect: Open) -> None:
    broker = await connect()
    receivers = [await join(broker) for _ in range(10)]
    waiting = [asyncio.ensure_future(exactly(receiver, 1)) for receiver in receivers]
    await publish(broker, *(f"{chr(97 + number)}" for number in range(10)))
    got = [names(page) for page in await asyncio.gather(*waiting[:10])]
    assert sorted(name for page in got for name in page) == list("abcdefghij")


async def test_idle_waiting_costs_next_to_nothing(connect: Open) -> None:
    receiver = await join(await connect())
    await take(receiver, wait=0.1)
    before = time.process_time()
    await take(receiver, wait=1)
    assert time.process_time() - before < 0.05


async def test_a_driver_without_receivers_sleeps(connect: Open) -> None:
    broker = await connect()
    worker = broker._worker
    assert worker is not None
    await take(await join(broker), wait=0.02)
    await broker.ping()
    await broker.ping()
    assert worker._next_moment() is None


async def test_a_cancelled_receive_has_taken_nothing(connect: Open, file: Path) -> None:
    broker = await connect("?synchronous=normal")
    receiver, other = await join(broker), await join(broker)
    chance = random.Random(3)
    got: list[str] = []
    sent = [f"a{number}" for number in range(300)]
    for number in range(0, 300, 3):
        publishing = asyncio.ensure_future(publish(broker, *sent[number : number + 3]))
        waiting = asyncio.ensure_future(receiver.receive(2, 5))
        for _ in range(chance.randrange(12)):
            await asyncio.sleep(chance.choice([0, 0, 0.0002]))
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            page = await waiting
            got += names(page)
            await receiver.settle(page, [])
        await publishing
    while page := await take(receiver):
        assert {one.message.attempt for one in page} == {1}
        got += names(page)
        await receiver.settle(page, [])
    assert got == sent
    assert await take(other) == []
    consistent(file)


async def test_a_cancelled_subscribe_leaves_no_receiver(connect: Open, file: Path) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    joining = asyncio.ensure_future(join(broker))
    await asyncio.sleep(0)
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    await broker.ping()
    await broker.close()
    assert select(file, "SELECT * FROM things_kit_receiver") == []


async def test_a_due_retry_comes_in_time_though_the_clock_was_set_back(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await connect()
    receiver = await join(broker)
    await publish(broker, "a1")
    (held,) = await take(receiver)
    await receiver.settle([], [Release(held, 0.3, 2)])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    (again,) = await take(receiver, wait=20)
    assert again.message.attempt == 2


async def test_a_mark_comes_with_the_next_delivery_and_goes_when_it_is_taken_back(connect: Open) -> None:
    broker = await connect("?lease=0.3")
    one = await join(broker)
    await publish(broker, "a1")
    (held,) = await take(one)
    assert held.suspect == 0
    assert isinstance(one.receiver, Marking)
    await one.receiver.mark(held, 7)
    two = await join(broker)
    (again,) = await take(two, wait=20)  # the first did not renew its lease
    assert (again.suspect, again.message.attempt) == (7, 2)
    assert isinstance(two.receiver, Marking)
    await two.receiver.mark(again, 0)
    await two.settle([], [Release(again, attempt=2)])
    (last,) = await take(two, wait=20)
    assert last.suspect == 0
