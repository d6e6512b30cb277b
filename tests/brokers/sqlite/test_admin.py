"""Topics, groups, lag and retention of SQLite."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.brokers.sqlite.given import Open, join, message, names, publish, run_in_thread, select, take
from things_kit.brokers.sqlite import admin
from things_kit.brokers.sqlite.driver import SQLiteDriver
from things_kit.engine.driver import ConnectionLost, Release, UnknownTopic
from things_kit.messaging.errors import (
    ConfigError,
)


async def publish_after_declaring(broker: SQLiteDriver) -> None:
    await broker.declare("t", [])
    await publish(broker, "a1")


async def sweep(broker: SQLiteDriver) -> None:
    while await run_in_thread(broker, lambda store: admin.sweep(store, time.time() + 2)):
        pass


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
    assert (
        select(
            file,
            "SELECT * FROM things_kit_consumer_group, things_kit_loan, things_kit_queued, things_kit_receiver",
        )
        == []
    )


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
    tables = [
        f"things_kit_{name}" for name in ("message", "consumer_group", "loan", "queued", "receiver", "topic")
    ]
    assert select(file, f"SELECT * FROM {', '.join(tables)}") == []
    assert isinstance((await broker.send([message()]))[0], UnknownTopic)
    await publish_after_declaring(broker)
    assert (await take(await join(broker)))[0].message.offset == 0


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
    assert select(file, "SELECT value FROM things_kit_message") == [(b"a1",)], "it is still owed to a group"
    assert (await broker.lag("t", "new"), await broker.lag("t", "g"), await broker.lag("t", "h")) == (1, 1, 0)
    late = await join(broker, "late")
    await publish(broker, "a3")
    assert [(one.message.value, one.message.offset) for one in await take(late)] == [(b"a1", 0), (b"a3", 3)]


async def test_retention_keeps_what_is_young_or_lent(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "SWEPT", 2)
    broker = await connect("?retain=1")
    receiver = await join(broker)
    young = time.time()
    await publish(broker, *(f"{chr(97 + number)}" for number in range(7)))
    page = await take(receiver)
    await receiver.settle(page[:3] + page[4:], [])
    await run_in_thread(broker, lambda store: admin.sweep(store, young))
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
    await run_in_thread(
        first, lambda store: store.connection.execute("UPDATE things_kit_message SET stored = 0")
    )
    await first.close()
    await (await connect()).ping()
    await (await connect()).ping()
    assert select(file, "SELECT * FROM things_kit_message") == []
