# ruff: noqa: ASYNC220, ASYNC240 - a test may block for the moment that a small file takes
import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from things_kit.brokers.sqlite import store as sqlite_store
from things_kit.brokers.sqlite import worker as sqlite_worker
from things_kit.brokers.sqlite.driver import SQLiteDriver, SQLiteReceiver
from things_kit.engine.collected import Collecting, collect
from things_kit.engine.driver import ConnectionLost, Delivery, Marking, Release, Subscription, UnknownTopic
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import (
    BrokerUnavailable,
    ClosedError,
    ConfigError,
    PublishError,
)
from things_kit.messaging.message import Message

NOW = datetime(2026, 5, 9, 7, 35, 25, 123456, tzinfo=UTC)

Open: TypeAlias = Callable[..., Awaitable[SQLiteDriver]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
async def connect(file: Path) -> AsyncIterator[Open]:
    """Opens any number of drivers on one file: to SQLite each is a process of its own."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_driver(query: str = "", path: Path = file) -> SQLiteDriver:
            made = driver(path, query)
            stack.push_async_callback(made.close)
            await made.open()
            return made

        yield open_driver


def driver(path: Path, query: str = "") -> SQLiteDriver:
    return SQLiteDriver.from_url(BrokerURL.parse(f"sqlite:///{path}{query}"))


def message(value: bytes = b"", key: bytes | None = None, topic: str = "t", **fields: Any) -> Message:
    return Message(topic, value, key, timestamp=NOW, id="id", **fields)


async def publish(broker: SQLiteDriver, *pairs: str, topic: str = "t") -> None:
    """Publish "k1": key k and value k1; "-1" has no key."""
    messages = [
        message(pair.encode(), None if pair[0] == "-" else pair[:1].encode(), topic) for pair in pairs
    ]
    assert not any(await broker.send(messages))


async def join(broker: SQLiteDriver, group: str = "g", **fields: Any) -> Collecting:
    return await collect(broker, Subscription(topic="t", group=group, **fields))


async def take(receiver: Collecting, limit: int = 100, wait: float = 0) -> list[Delivery]:
    return list(await receiver.receive(limit, wait))


def names(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message.value.decode() for delivery in deliveries]


async def exactly(receiver: Collecting, count: int, wait: float = 10) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(wait):
        while len(got) < count:
            got += await receiver.receive(count - len(got), wait)
    return got


async def run_in_thread(broker: SQLiteDriver, work: Callable[[sqlite_store.Store], Any]) -> Any:
    assert broker._worker is not None
    return await broker._worker.write(work)


def select(path: Path, statement: str) -> Any:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def consistent(path: Path) -> None:
    """What must hold between the rows whatever was done."""
    assert select(path, "PRAGMA integrity_check") == [("ok",)]
    stuck = """SELECT grp, lane FROM queued WHERE lane IS NOT NULL GROUP BY grp, lane HAVING count(due) = 0
        EXCEPT SELECT grp, lane FROM loan"""
    assert select(path, stuck) == [], "a lane waits for nobody"
    overtaken = """SELECT 1 FROM queued a JOIN queued b USING (grp, lane) WHERE a.due IS NULL AND b.due > 0 AND b.off > a.off"""
    assert select(path, overtaken) == [], "a free message is behind a waiting one of its lane"
    shared = "SELECT 1 FROM loan WHERE lane IS NOT NULL GROUP BY grp, lane HAVING count(DISTINCT owner) > 1"
    assert select(path, shared) == [], "a lane has two owners"
    assert select(path, "SELECT 1 FROM loan WHERE owner NOT IN (SELECT id FROM receiver)") == []


# URL and options


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://events.db", 'write "sqlite:///events.db"'),
        ("sqlite://", "sqlite:///events.db"),
        ("sqlite:///", "sqlite:///events.db"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///a.db?lease=0", "lease"),
        ("sqlite:///a.db?retain=-1", "retain"),
        ("sqlite:///a.db?max_message_bytes=0", "max_message_bytes"),
        ("sqlite:///a.db?synchronous=off", "synchronous"),
        ("sqlite:///a.db?cache=1", "unknown option 'cache'"),
        ("sqlite:///a%00b", "NUL"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_a_sentence(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SQLiteDriver.from_url(BrokerURL.parse(url))


async def test_three_slashes_are_relative_and_four_are_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connect: Open
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = SQLiteDriver.from_url(BrokerURL.parse("sqlite:///here%20now.db"))
    await relative.open()
    await relative.close()
    await connect(path=tmp_path / "there.db")
    assert {path.name for path in tmp_path.iterdir()} >= {"here now.db", "there.db"}


async def test_capabilities_follow_the_options(file: Path) -> None:
    capabilities = driver(file, "?lease=2.5&max_message_bytes=1000").capabilities
    assert capabilities.lease == 2.5
    assert capabilities.max_message_bytes == 1000
    assert capabilities.emulated == ()


# Messages


@pytest.mark.parametrize(
    "sent",
    [
        message(b""),
        message(bytes(range(256)) * 20, key=bytes(range(256))),
        message(b"empty key is a key", key=b""),
        message(b"x", headers={"nöt äscii": "日本語 \0 \n \" ' \\ \U0001f600", "": ""}),
        message(b"x", headers={f"h{i}": "v" * 2048 for i in range(30)}),
        Message("t", b"old", timestamp=datetime.min.replace(tzinfo=UTC), id="ïd \0 \"'"),
        Message("t", b"far", timestamp=datetime.max.replace(tzinfo=UTC), id="\n"),
    ],
)
async def test_a_message_arrives_as_it_was_sent(connect: Open, sent: Message) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    assert await broker.send([sent, sent]) == [None, None]
    first, second = await take(await join(broker))
    assert first.message == sent.replace(offset=0)
    assert second.message == sent.replace(offset=1)


async def test_keys_and_headers_of_a_batch_stay_with_their_messages(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    chance = random.Random(1)
    sent = [
        message(
            chance.randbytes(chance.randrange(5)),
            chance.choice([None, b"", b"a", b"long key"]),
            headers=chance.choice([{}, {"n": str(number)}]),
        )
        for number in range(1500)
    ]
    assert not any(await broker.send(sent))
    got = await exactly(await join(broker), 1500)
    assert [one.message for one in got] == [each.replace(offset=place) for place, each in enumerate(sent)]


async def test_messages_for_a_missing_topic_leave_the_rest_of_the_batch_confirmed(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    results = await broker.send([message(b"good"), message(b"x", topic="missing"), message(b"good too")])
    assert [type(result) for result in results] == [type(None), UnknownTopic, type(None)]
    assert names(await take(await join(broker))) == ["good", "good too"]


async def test_pages_are_bounded_in_bytes(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "PAGE_BYTES", 250)
    broker = await connect()
    await broker.declare("t", ["g"])
    await broker.send([message(b"x" * size) for size in (100, 100, 100, 1000, 1, 1)])
    receiver = await join(broker)
    sizes = []
    while page := await take(receiver):
        sizes.append([len(one.message.value) for one in page])
        await receiver.settle([], [Release(one) for one in page[1:]])
        await receiver.settle(page[:1], [])
    assert [page[0] for page in sizes] == [100, 100, 100, 1000, 1, 1]
    assert all(sum(page) <= 250 or len(page) == 1 for page in sizes)


@pytest.mark.parametrize(
    "name", ["../../etc", "a/b", "*", "%_", "'; DROP TABLE message; --", "a\nb", "a\0b", "ü", " "]
)
async def test_hostile_names_are_carried(connect: Open, name: str) -> None:
    broker = await connect()
    await broker.declare(name, [name])
    await broker.declare("t", ["g"])
    assert await broker.send([message(b"mine", topic=name)]) == [None]
    receiver = await collect(broker, Subscription(topic=name, group=name))
    (got,) = await take(receiver)
    assert got.message.topic == name
    assert await broker.lag(name, name) == 1
    assert await broker.lag("t", "g") == 0


# Groups


async def test_each_group_gets_all_and_one_group_shares(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g", "h"])
    await publish(broker, "a1", "b1", "c1")
    one, two, other = await join(broker), await join(broker), await join(broker, "h")
    assert names(await take(one, 2)) == ["a1", "b1"]
    assert names(await take(two)) == ["c1"]
    assert names(await take(other)) == ["a1", "b1", "c1"]


async def test_a_group_begins_at_the_earliest_or_the_latest(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", [])
    await publish(broker, "a1")
    earliest, latest = await join(broker), await join(broker, "late", start="latest")
    ephemeral = await join(broker, "own", ephemeral=True)
    await publish(broker, "a2")
    assert names(await take(earliest)) == ["a1", "a2"]
    assert names(await take(latest)) == ["a2"]
    assert names(await take(ephemeral)) == ["a2"]


async def test_what_may_not_be_created_is_missed_with_a_sentence(connect: Open) -> None:
    broker = await connect()
    with pytest.raises(ConfigError, match="topic 't' does not exist"):
        await join(broker, create=False)
    await broker.declare("t", ["known"])
    with pytest.raises(ConfigError, match="group 'g' does not exist"):
        await join(broker, create=False)
    await join(broker, "known", create=False)


async def test_an_ephemeral_group_ends_with_its_receiver(connect: Open, file: Path) -> None:
    broker = await connect()
    receiver = await join(broker, "own", ephemeral=True)
    await publish(broker, "a1", "a2")
    await take(receiver, 1)
    await receiver.close()
    await receiver.close()
    assert select(file, "SELECT * FROM consumer_group, loan, queued, receiver") == []


async def test_an_idle_ephemeral_group_outlives_its_lease(connect: Open) -> None:
    broker, other = await connect("?lease=0.2"), await connect("?lease=0.2")
    receiver = await join(broker, "own", ephemeral=True)
    await take(await join(other, "g"), wait=0.6)
    await publish(other, "a1")
    assert names(await take(receiver)) == ["a1"]


async def test_a_removed_topic_ends_its_subscriptions_and_begins_anew(connect: Open, file: Path) -> None:
    broker = await connect()
    receiver = await join(broker)
    waiting = asyncio.ensure_future(receiver.receive(1, 10))
    await publish(broker, "a1", topic="t")
    assert names(await waiting) == ["a1"]
    waiting = asyncio.ensure_future(receiver.receive(1, 10))
    await broker.remove("t")
    with pytest.raises(ConnectionLost, match="removed"):
        await waiting
    await receiver.close()
    await broker.remove("t")
    assert select(file, "SELECT * FROM message, consumer_group, loan, queued, receiver, topic") == []
    assert isinstance((await broker.send([message()]))[0], UnknownTopic)
    await publish_after_declaring(broker)
    assert (await take(await join(broker)))[0].message.offset == 0


async def publish_after_declaring(broker: SQLiteDriver) -> None:
    await broker.declare("t", [])
    await publish(broker, "a1")


# Lanes


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
    await one.settle([b1], [Release(a2, 30, 2), Release(a1, 0.1, 2)])
    await publish(broker, "a4", "b2")
    consistent(file)
    assert names(await take(two)) == ["b2"]
    began = time.monotonic()
    (again,) = await take(two, wait=5)
    assert time.monotonic() - began > 0.05
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
    await one.settle([], [Release(first, 0.05), Release(second)])
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


# Leases


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


async def test_a_killed_process_loses_its_lease_and_no_message(connect: Open, file: Path) -> None:
    broker = await connect("?lease=0.5")
    await broker.declare("t", ["g"])
    await publish(broker, "a1", "a2", "b1")
    source = str(Path(sqlite_worker.__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, "-c", CONSUMER, f"sqlite:///{file}?lease=0.5"],
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
    assert select(file, "SELECT name FROM consumer_group") == [("g",)]
    consistent(file)


async def test_extending_keeps_and_forgetting_to_loses(connect: Open, file: Path) -> None:
    broker, other = await connect("?lease=0.3"), await connect("?lease=0.3")
    one, two = await join(broker), await join(other)
    await publish(broker, "a1")
    held = await take(one)
    for _ in range(4):
        assert await take(two, wait=0.15) == []
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


async def test_an_idle_receiver_whose_lease_ran_out_just_goes_on(connect: Open) -> None:
    broker = await connect("?lease=0.05")
    one, two = await join(broker), await join(broker)
    assert await take(two, wait=0.2) == []
    await publish(broker, "a1")
    assert names(await take(one)) == ["a1"]


# Waiting


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
    assert await take(receiver, wait=0.1) == []
    assert 0.1 <= time.monotonic() - began < 1


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
    assert select(file, "SELECT * FROM receiver") == []


# Group commit


async def test_what_waits_together_is_committed_together(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    commits: list[str] = []
    gate = threading.Event()

    def trace(store: sqlite_store.Store) -> None:
        store.connection.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
        gate.wait(10)

    tracing = asyncio.ensure_future(run_in_thread(broker, trace))
    await asyncio.sleep(0)
    sending = [asyncio.ensure_future(publish(broker, f"a{number}")) for number in range(50)]
    refused = asyncio.ensure_future(join(broker, "missing", create=False))
    waiting = asyncio.ensure_future(receiver.receive(100, 5))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(tracing, *sending)
    with pytest.raises(ConfigError):
        await refused
    assert names(await waiting) == [f"a{number}" for number in range(50)]
    assert len(commits) <= 2
    await run_in_thread(broker, lambda store: store.connection.set_trace_callback(None))


async def test_a_job_that_fails_undoes_only_itself(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])

    def half(store: sqlite_store.Store) -> None:
        store.declare("half", [])
        raise ConfigError("no")

    results = await asyncio.gather(
        publish(broker, "a1"), run_in_thread(broker, half), publish(broker, "a2"), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), ConfigError, type(None)]
    assert names(await take(await join(broker))) == ["a1", "a2"]
    assert isinstance((await broker.send([message(topic="half")]))[0], UnknownTopic)


# Targets, lag, retention


async def test_a_targeted_message_reaches_one_group_alone(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g", "h"])
    await broker.send(
        [
            message(b"for h", headers={"replay-group": "h"}),
            message(b"all"),
            message(b"1", headers={"replay-group": "h"}),
        ]
    )
    assert (await broker.lag("t", "g"), await broker.lag("t", "h"), await broker.lag("t", "new")) == (1, 3, 1)
    receiver = await join(broker)
    assert names(await take(receiver)) == ["all"]
    assert names(await take(await join(broker, "h"))) == ["for h", "all", "1"]
    waiting = asyncio.ensure_future(receiver.receive(1, 10))
    await broker.send([message(headers={"replay-group": "h"})])
    await publish(broker, "a1")
    assert names(await waiting) == ["a1"]


async def test_lag_counts_what_is_handed_out_held_back_or_not_yet_seen(connect: Open) -> None:
    broker = await connect()
    assert await broker.lag("t", "g") == 0
    receiver = await join(broker)
    await publish(broker, "a1", "b1", "a2", "c1")
    a1, b1 = await take(receiver, 2)
    assert await broker.lag("t", "g") == 4
    await receiver.settle([b1], [Release(a1, 60)])
    assert names(await take(receiver)) == ["c1"]
    assert await broker.lag("t", "g") == 3


async def sweep(broker: SQLiteDriver) -> None:
    while await run_in_thread(broker, lambda store: store.sweep(time.time() + 2)):
        pass


async def test_retention_removes_what_all_groups_have_settled(connect: Open, file: Path) -> None:
    broker = await connect("?retain=1")
    await broker.declare("t", [])
    await publish(broker, "a1", "b1", "a2")
    await sweep(broker)
    assert await broker.lag("t", "new") == 3, "without a group nothing is settled"
    one, two = await join(broker), await join(broker, "h")
    page = await take(one)
    await one.settle(page[1:], [Release(page[0], 60)])
    await sweep(broker)
    assert await broker.lag("t", "new") == 3
    await two.settle(await take(two), [])
    await sweep(broker)
    assert select(file, "SELECT value FROM message") == [(b"a1",)], "it is still owed to a group"
    assert (await broker.lag("t", "new"), await broker.lag("t", "g"), await broker.lag("t", "h")) == (1, 1, 0)
    late = await join(broker, "late")
    await publish(broker, "a3")
    assert [(one.message.value, one.message.offset) for one in await take(late)] == [(b"a1", 0), (b"a3", 3)]


async def test_retention_keeps_what_is_young_or_lent(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "SWEPT", 2)
    broker = await connect("?retain=1")
    receiver = await join(broker)
    young = time.time()
    await publish(broker, *(f"{chr(97 + number)}" for number in range(7)))
    page = await take(receiver)
    await receiver.settle(page[:3] + page[4:], [])
    await run_in_thread(broker, lambda store: store.sweep(young))
    assert await broker.lag("t", "new") == 7
    await sweep(broker)
    assert await broker.lag("t", "new") == 1
    await receiver.settle(page[3:4], [])
    await sweep(broker)
    await publish(broker, "z")
    assert (await take(receiver))[0].message.offset == 7


async def test_old_messages_are_removed_at_open(file: Path, connect: Open) -> None:
    first = await connect()
    receiver = await join(first)
    await publish(first, "a1")
    await receiver.settle(await take(receiver), [])
    await run_in_thread(first, lambda store: store.connection.execute("UPDATE message SET stored = 0"))
    await first.close()
    await (await connect()).ping()
    await (await connect()).ping()
    assert select(file, "SELECT * FROM message") == []


# Errors


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        await driver(tmp_path / "no" / "events.db").open()
    with pytest.raises(ConfigError, match="is a folder"):
        await driver(tmp_path).open()


async def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/proc/events\.db"):
        await driver(Path("/proc/events.db")).open()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no user ids")
async def test_a_read_only_file_is_a_config_error(file: Path, connect: Open) -> None:
    await (await connect()).close()
    file.chmod(0o444)
    folders = [
        folder for folder in file.parents if folder.stat().st_uid == os.geteuid() and folder != Path("/")
    ]
    modes = [(folder, folder.stat().st_mode) for folder in folders]
    root = os.geteuid() == 0
    try:
        if root:  # root may write everything, so somebody else looks
            for folder, mode in modes:
                folder.chmod(mode | 0o055)
            os.seteuid(65534)
        with pytest.raises(ConfigError, match=r"read-only|cannot be opened"):
            await driver(file).open()
    finally:
        if root:
            os.seteuid(0)
        for folder, mode in modes:
            folder.chmod(mode)


@pytest.mark.parametrize("content", [b"hello", b"hello" * 1000])
async def test_what_is_no_database_is_left_alone(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="not a SQLite database"):
        await driver(file).open()
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE theirs (a)",
        "PRAGMA application_id = 7",
        "PRAGMA user_version = 3",
        "PRAGMA journal_mode = WAL",
    ],
)
async def test_a_database_of_something_else_is_left_alone(file: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(statement)
        content = file.read_bytes()
        with pytest.raises(ConfigError, match="something else"):
            await driver(file).open()
        assert file.read_bytes() == content
    assert {path.name for path in file.parent.iterdir()} == {"events.db"}


async def test_a_file_of_a_newer_version_is_refused(file: Path, connect: Open) -> None:
    await (await connect()).close()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="schema 99"):
        await driver(file).open()


async def test_damage_is_named(file: Path, connect: Open) -> None:
    first = await connect()
    await first.declare("t", ["g"])
    await publish(first, *(["a" * 50] * 500))
    await first.close()
    content = bytearray(file.read_bytes())
    for place in range(4096, len(content), 4096):
        content[place : place + 2000] = b"\xff" * 2000
    file.write_bytes(content)
    with pytest.raises(BrokerUnavailable, match="damaged") as caught:
        await (await connect()).send([message()])
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)


async def test_a_full_disk_is_said_to_publishers_while_a_consumer_waits(connect: Open) -> None:
    """What the send would have woken is no part of what is tried again one by one."""
    broker = await connect()
    receiver = await join(broker)
    waiting = asyncio.ensure_future(receiver.receive(1, 30))
    await run_in_thread(broker, lambda store: store.connection.execute("PRAGMA max_page_count = 1"))
    results = await broker.send([message(b"x" * 100_000)])
    assert "the disk is full" in str(results[0])
    await run_in_thread(broker, lambda store: store.connection.execute("PRAGMA max_page_count = 1000000"))
    await publish(broker, "a1")
    with contextlib.suppress(ConnectionLost):  # it may have been told of the full disk, too
        assert names(await waiting) == ["a1"]


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


async def test_a_file_of_the_first_schema_goes_on(connect: Open, file: Path) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    await publish(broker, "a1")
    await broker.close()
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as old:
        for table in ("loan", "queued"):
            old.execute(f"ALTER TABLE {table} DROP COLUMN suspect")
        old.execute("PRAGMA user_version = 1")
    again = await connect()
    assert names(await take(await join(again))) == ["a1"]
    consistent(file)


async def test_a_full_disk_refuses_sends_and_lets_settling_go_on(connect: Open) -> None:
    broker = await connect()
    receiver = await join(broker)
    await publish(broker, "a1", "b1")
    page = await take(receiver, 1)

    def fill(store: sqlite_store.Store) -> None:
        (pages,) = store.connection.execute("PRAGMA page_count").fetchone()
        store.connection.execute(f"PRAGMA max_page_count = {pages}")

    await run_in_thread(broker, fill)
    sending = broker.send([message(b"x" * 100_000)] * 3 + [message(topic="missing")])
    results, _, _ = await asyncio.gather(sending, receiver.settle(page, []), broker.ping())
    assert all(isinstance(result, PublishError) for result in results[:3])
    assert "the disk is full" in str(results[0])
    assert isinstance(results[0].__cause__ if results[0] else None, sqlite3.OperationalError)
    assert await broker.lag("t", "g") == 1


async def test_a_lock_of_another_process_is_waited_for_and_then_named(
    connect: Open, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_worker, "LOCK_PATIENCE", 0.2)
    broker = await connect()
    await broker.declare("t", ["g"])
    await broker.ping()
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConnectionLost, match="locked by another process") as caught:
            await broker.send([message()])
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        with pytest.raises(ConnectionLost, match="locked by another process"):
            await broker.ping()
        sending = asyncio.ensure_future(broker.send([message()]))
        await asyncio.sleep(0)
        locker.execute("COMMIT")
        assert await sending == [None]


async def test_nothing_is_confirmed_into_a_file_that_was_deleted(connect: Open, file: Path) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    file.rename(file.with_name("moved.db"))
    with pytest.raises(ConnectionLost, match="moved"):
        await broker.send([message()])
    with pytest.raises(ConnectionLost, match="moved"):
        await broker.ping()


async def test_many_processes_create_one_file_at_once(connect: Open) -> None:
    drivers = await asyncio.gather(*(connect() for _ in range(8)))
    await asyncio.gather(*(each.declare("t", ["g"]) for each in drivers))
    await asyncio.gather(*(publish(each, f"{number}") for number, each in enumerate(drivers)))
    assert len(await take(await join(drivers[0]))) == 8


async def test_a_fault_of_the_thread_fails_all_that_wait(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await connect()
    waiting = asyncio.ensure_future((await join(broker)).receive(1, 60))
    await broker.ping()

    def fault(*_: Any) -> None:
        raise RuntimeError("fault")

    monkeypatch.setattr(sqlite_worker.Worker, "_commit", fault)
    with pytest.raises(BrokerUnavailable, match="fault"):
        await broker.send([message()])
    with pytest.raises(BrokerUnavailable, match="fault"):
        await waiting
    with pytest.raises(ClosedError):
        await broker.ping()


# Opening and closing


async def test_closing_leaves_nothing_behind(file: Path) -> None:
    before = threading.active_count()
    broker = driver(file)
    await broker.open()
    receiver = await join(broker)
    await publish(broker, "a1")
    last = asyncio.ensure_future(publish(broker, "a2"))
    waiting = asyncio.ensure_future(receiver.receive(1, 0))
    await asyncio.sleep(0)
    await waiting
    await receiver.close()
    await asyncio.gather(broker.close(), broker.close())
    await broker.close()
    await last
    assert threading.active_count() == before
    assert [path.name for path in file.parent.iterdir()] == ["events.db"]
    assert select(file, "SELECT count(*) FROM message") == [(2,)]
    await receiver.close()
    for call in (broker.ping(), broker.send([message()]), receiver.receive(1, 1), broker.lag("t", "g")):
        with pytest.raises(ClosedError):
            await call


async def test_closing_ends_a_receive_that_still_waits(file: Path) -> None:
    broker = driver(file)
    await broker.open()
    waiting = asyncio.ensure_future((await join(broker)).receive(1, 60))
    await asyncio.sleep(0)
    await broker.close()
    with pytest.raises(ClosedError):
        await waiting


async def test_a_failed_or_cancelled_open_leaves_no_thread(file: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(ConfigError):
        await driver(tmp_path).open()
    opening = asyncio.ensure_future(driver(file).open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert threading.active_count() == before


async def test_messages_stay_through_twenty_restarts(connect: Open) -> None:
    for number in range(20):
        broker = await connect()
        await broker.declare("t", ["g"])
        await publish(broker, f"a{number}")
        receiver = await join(broker)
        (got,) = await take(receiver)
        assert got.message.offset == number
        await receiver.settle([got], [])
        await receiver.close()
        await broker.close()
