"""What is published with a session is there if its transaction commits, and gone if it does not."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiosqlite
import asyncpg
import msgspec
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from tests.patterns.outbox.sessions import POSTGRES, SQLITE, Opening
from things_kit import ConfigError, Message, PublishError, Topic, connect
from things_kit.patterns import Outbox, far_side
from things_kit.patterns.outbox.relay import Relay
from things_kit.testing.servers.postgres import PostgresServer


class Order(msgspec.Struct, frozen=True):
    id: str
    amount: int


orders = Topic("orders", Order, key="id", headers={"source": "shop"})


@pytest.fixture
def file(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/app.db"


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as url:
        yield url.replace("postgres://", "postgresql://")


async def received(url: str, count: int, topic: str = "orders") -> list[Message]:
    """All messages of the topic, of which there must be so many."""
    got: list[Message] = []
    enough = asyncio.Event()

    async def collect(message: Message) -> None:
        got.append(message)
        if len(got) == count:
            enough.set()

    async with connect(url) as broker:
        group = f"g-{uuid4().hex}"
        async with broker.consumer(topic, group=group, handler=collect), asyncio.timeout(60):
            await enough.wait()
        assert await broker.lag(topic, group) == 0
    return got


async def made(url: str) -> None:
    async with connect(url) as broker:
        await broker.declare("orders")


async def check_session(opening: Opening, url: str) -> None:
    await made(url)
    outbox = Outbox()
    time = datetime(2026, 5, 9, 7, 35, 25, 123456, tzinfo=UTC)
    async with opening(url, outbox) as given:
        await given.publish(orders, Order("rolled back", 1))
        await given.rollback()
    async with opening(url, outbox) as given:
        await given.publish(orders, Order("o-1", 1), headers={"more": "€"}, id="id-1", timestamp=time)
        await given.publish(Message("orders", b"\x00%s?", None))
        with pytest.raises(PublishError) as caught:
            await given.publish_batch([Message("orders", b"good"), Message("", b"bad")])
        assert list(caught.value.failures) == [1]
        async with given.undone():
            await given.publish(orders, Order("undone", 1))
            await given.publish_batch([Message("orders", b"undone")] * 2)
        await given.publish_batch(orders.messages([Order(f"o-{number}", number) for number in range(2, 300)]))
        await given.commit()
    first, second, *others = await received(url, 300)
    assert (first.value, first.key, first.id, first.timestamp) == (
        b'{"id":"o-1","amount":1}',
        b"o-1",
        "id-1",
        time,
    )
    assert (first.headers["source"], first.headers["more"]) == ("shop", "€")
    assert (second.value, second.key) == (b"\x00%s?", None)
    assert [message.key for message in others] == [f"o-{number}".encode() for number in range(2, 300)]
    assert second.id
    assert second.timestamp


@pytest.mark.parametrize("kind", SQLITE)
async def test_a_message_shares_the_fate_of_a_transaction_in_sqlite(kind: str, file: str) -> None:
    await check_session(SQLITE[kind], file)


@pytest.mark.parametrize("kind", POSTGRES)
async def test_a_message_shares_the_fate_of_a_transaction_in_postgresql(kind: str, database: str) -> None:
    await check_session(POSTGRES[kind], database)


@pytest.mark.parametrize("kind", SQLITE)
async def test_an_open_transaction_shows_nothing(kind: str, file: str) -> None:
    await made(file)
    async with SQLITE[kind](file, Outbox()) as given, connect(file) as broker:
        await broker.declare("orders", ["g"])
        await given.publish(orders, Order("o-1", 1))
        assert await broker.lag("orders", "g") == 0
        await given.commit()
        assert await broker.lag("orders", "g") == 1


async def test_a_topic_that_is_new_comes_with_its_first_message(file: str) -> None:
    await made(file)
    async with SQLITE["aiosqlite"](file, Outbox()) as given:
        await given.publish(Message("new", b"1"))
        await given.commit()
    assert [message.value for message in await received(file, 1, "new")] == [b"1"]


async def test_the_outbox_makes_the_tables_that_the_broker_uses(file: str, database: str) -> None:
    engine = create_async_engine(file.replace("://", "+aiosqlite://"))
    await Outbox("shop").create(engine)
    async with engine.begin() as connection:
        await Outbox("shop").publish(connection, orders, Order("o-1", 1))
    await engine.dispose()
    assert len(await received(f"{file}?schema=shop", 1)) == 1

    engine = create_async_engine(database.replace("://", "+asyncpg://"))
    await Outbox("my shop").create(engine)
    async with engine.begin() as connection:
        await Outbox("my shop").publish(connection, orders, Order("o-1", 1))
    await engine.dispose()
    assert len(await received(f"{database}?schema=my%20shop", 1)) == 1


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_tables_may_be_made_by_several_at_once_and_by_brokers_beside_them(
    kind: str, file: str, database: str
) -> None:
    url, driver = (file, "aiosqlite") if kind == "sqlite" else (database, "asyncpg")
    engine = create_async_engine(url.replace("://", f"+{driver}://"), poolclass=NullPool)
    everybody = [*(Outbox().create(engine) for _ in range(4)), *(made(url) for _ in range(2))]
    await asyncio.gather(*everybody)
    async with engine.begin() as connection:
        await Outbox().publish(connection, orders, Order("o-1", 1))
    await engine.dispose()
    assert len(await received(url, 1)) == 1


async def test_publishing_makes_no_tables(file: str, database: str) -> None:
    for opening, url in (
        (SQLITE["AsyncSession"], file),
        (SQLITE["sqlite3"], file),
        *((each, database) for each in POSTGRES.values()),
    ):
        async with opening(url, Outbox()) as given:
            with pytest.raises(ConfigError, match="tables are missing"):
                await given.publish(orders, Order("o-1", 1))
            await given.rollback()


async def test_a_connection_that_commits_by_itself_is_refused(file: str, database: str) -> None:
    await made(file)
    outbox, message = Outbox(), Message("orders", b"1")
    name = file.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(name, isolation_level=None)) as plain:
        with pytest.raises(ConfigError, match="no transaction open"):
            outbox.publish_sync(plain, message)
        plain.execute("BEGIN")
        outbox.publish_sync(plain, message)
        plain.execute("ROLLBACK")
    async with aiosqlite.connect(name, isolation_level=None) as opened:
        with pytest.raises(ConfigError, match="no transaction open"):
            await outbox.publish(opened, message)
    connection = await asyncpg.connect(database)
    with pytest.raises(ConfigError, match="no transaction open"):
        await outbox.publish(connection, message)
    await connection.close()
    for engine in (
        create_engine(file, isolation_level="AUTOCOMMIT"),
        create_engine(file).execution_options(isolation_level="AUTOCOMMIT"),
    ):
        with engine.connect() as connected, pytest.raises(ConfigError, match="no transaction open"):
            outbox.publish_sync(connected, message)
        engine.dispose()


async def test_a_two_phase_transaction_is_refused(database: str) -> None:
    engine = create_engine(database.replace("://", "+psycopg://"))
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        with pytest.raises(ConfigError, match="two-phase"):
            Outbox().publish_sync(connection, Message("orders", b"1"))
        transaction.rollback()
    with Session(engine, twophase=True) as session, pytest.raises(ConfigError, match="two-phase"):
        Outbox().publish_sync(session, Message("orders", b"1"))
    engine.dispose()
    another = create_async_engine(database.replace("://", "+psycopg://"))
    async with AsyncSession(another, twophase=True) as session:
        with pytest.raises(ConfigError, match="two-phase"):
            await Outbox().publish(session, Message("orders", b"1"))
    await another.dispose()


@pytest.mark.parametrize("limit", [-1, 0, True, "16", 1.5])
def test_a_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(ConfigError, match="max_message_bytes must be a whole number from 1; it is"):
        Outbox(max_message_bytes=limit)


async def test_a_session_of_the_wrong_kind_is_named(file: str) -> None:
    with contextlib.closing(sqlite3.connect(file.removeprefix("sqlite:///"))) as plain:
        with pytest.raises(ConfigError, match=r"use outbox\.publish_sync"):
            await Outbox().publish(plain, Message("orders", b"1"))
        with pytest.raises(ConfigError, match="in SQLite an outbox's schema"):
            Outbox("my shop").publish_sync(plain, Message("orders", b"1"))
    with pytest.raises(ConfigError, match=r"not of builtins\.object"):
        Outbox().publish_sync(object(), Message("orders", b"1"))


async def test_messages_of_locked_keys_come_in_the_order_of_the_commits(database: str) -> None:
    await made(database)
    outbox = Outbox(lock_keys=True)
    first, second = await asyncpg.connect(database), await asyncpg.connect(database)
    one = first.transaction()
    await one.start()
    await outbox.publish(first, Message("orders", b"1", b"k"))

    async def publish_second() -> None:
        async with second.transaction():
            await outbox.publish_batch(
                second, [Message("orders", b"other", b"j"), Message("orders", b"2", b"k")]
            )

    waiting = asyncio.create_task(publish_second())
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with asyncio.timeout(60):
        while not await first.fetchval(locks):  # noqa: ASYNC110 - only the server knows
            await asyncio.sleep(0.01)
    await one.commit()
    await waiting
    await first.close()
    await second.close()
    assert [message.value for message in await received(database, 3) if message.key == b"k"] == [b"1", b"2"]


async def test_batches_that_lock_the_same_keys_do_not_lock_each_other_out(database: str) -> None:
    await made(database)
    outbox = Outbox(lock_keys=True)
    messages = [Message("orders", b"", b"%d" % number) for number in range(20)]

    async def publish(batch: list[Message]) -> None:
        connection = await asyncpg.connect(database)
        for _ in range(20):
            async with connection.transaction():
                await outbox.publish_batch(connection, batch)
        await connection.close()

    async with asyncio.timeout(60):
        await asyncio.gather(
            publish(messages), publish(messages[::-1]), publish(messages[10:] + messages[:10])
        )
    assert len(await received(database, 1200)) == 1200


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_relay_carries_on_what_was_committed(
    kind: str, file: str, database: str, tmp_path: Path
) -> None:
    url, opening = {"sqlite": (file, SQLITE["aiosqlite"]), "postgresql": (database, POSTGRES["asyncpg"])}[
        kind
    ]
    await made(url)
    outbox, target = Outbox(), f"sqlite:///{tmp_path}/target.db"
    keys = [f"k{number % 7}" for number in range(200)]
    async with outbox.relay(url, target, [orders], rename={"orders": "shop.orders"}) as relay:
        for number, key in enumerate(keys):
            if number % 50 == 0:
                async with opening(url, outbox) as given:
                    messages = [
                        orders.message(Order(key, number + step), id=f"{number + step}")
                        for step, key in enumerate(keys[number : number + 50])
                    ]
                    await given.publish_batch(messages)
                    await given.commit()
        async with asyncio.timeout(60):
            await relay.until_empty()
        assert relay.bridge.moved == 200
        assert await relay.lag() == 0
    got = await received(target, 200, "shop.orders")
    assert sorted(int(message.id or "") for message in got) == list(range(200))
    for key in set(keys):
        ids = [int(message.id or "") for message in got if message.key == key.encode()]
        assert ids == sorted(ids)


def both_have_some(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let no relay publish before two of them have something to publish; tells when."""
    publish, both, those = far_side.FarSide.publish, asyncio.Event(), set[int]()

    async def together(self: far_side.FarSide, *arguments: Any) -> Any:
        those.add(id(self))
        if len(those) == 2:
            both.set()
        await both.wait()
        return await publish(self, *arguments)

    monkeypatch.setattr(far_side.FarSide, "publish", together)
    return both


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_relays_of_one_group_share_the_work_and_keep_the_order_of_each_key(
    kind: str, file: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, opening = (file, SQLITE["aiosqlite"]) if kind == "sqlite" else (database, POSTGRES["asyncpg"])
    await made(url)
    target = f"sqlite:///{tmp_path}/target.db"
    relays = [Relay(url, target, ["orders"], group="r", max_in_flight=20) for _ in range(2)]
    both = both_have_some(monkeypatch)
    async with relays[0], relays[1], opening(url, Outbox()) as given:
        await given.publish_batch([Message("orders", b"%d" % n, b"k%d" % (n % 40)) for n in range(400)])
        await given.commit()
        async with asyncio.timeout(60):
            await both.wait()  # one alone may have all that it can hold, and no more
            await asyncio.gather(*(relay.until_empty() for relay in relays))
        assert all(relay.moved for relay in relays)
        assert sum(relay.moved for relay in relays) == 400
    got = await received(target, 400)
    for key in {message.key for message in got}:
        numbers = [int(message.value) for message in got if message.key == key]
        assert numbers == sorted(numbers)


async def test_a_relay_may_start_before_anything_was_published(file: str) -> None:
    async with connect("memory://") as target, Outbox().relay(file, target, [orders]) as relay:
        await target.declare("orders", ["g"])
        async with SQLITE["aiosqlite"](file, Outbox()) as given:
            await given.publish(orders, Order("o-1", 1))
            await given.commit()
        await relay.until_empty()
        assert await target.lag("orders", "g") == 1
    with pytest.raises(ConfigError, match="'nowhere'"):
        async with Outbox().relay(f"{file}?declare=false", "memory://", ["nowhere"]):
            pass


def test_a_relay_of_another_schema_is_refused(file: str) -> None:
    with pytest.raises(ConfigError, match="say \\?schema="):
        Outbox("shop").relay(file, "memory://", ["orders"])


@pytest.mark.parametrize("topics", ["orders", orders, []])
def test_a_relay_of_no_list_of_topics_is_refused_where_it_is_made(file: str, topics: Any) -> None:
    with pytest.raises(ConfigError, match="a bridge needs a list of topics"):
        Outbox().relay(file, "memory://", topics)


def test_a_relay_that_would_read_topics_of_another_name_is_refused(file: str) -> None:
    with pytest.raises(ConfigError, match="prefix '', and its relay would read those of 'test-'"):
        Outbox().relay(f"{file}?topic_prefix=test-", "memory://", ["orders"])
    with pytest.raises(ConfigError, match="prefix 'test-', and its relay would read those of ''"):
        Outbox(topic_prefix="test-").relay(file, "memory://", ["orders"])


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_an_outbox_with_a_prefix_writes_the_topics_of_a_broker_with_that_prefix(
    kind: str, file: str, database: str
) -> None:
    url, opening = (file, SQLITE["aiosqlite"]) if kind == "sqlite" else (database, POSTGRES["asyncpg"])
    outbox, there = Outbox(topic_prefix="test-"), f"{url}?topic_prefix=test-"
    await made(there)
    async with opening(url, outbox) as given:
        await given.publish(orders, Order("o-1", 1))
        await given.publish(Message("orders", b"later"), after=3600, schedule_id="r")
        await given.commit()
    async with connect(url) as broker, connect("memory://") as target:
        assert await broker.lag("test-orders", "all of it") == 1
        await target.declare("orders", ["g"])
        async with outbox.relay(there, target, ["orders"]) as relay:
            await relay.until_empty()
            assert await relay.brokers[0].cancel("orders", "r")
        assert await target.lag("orders", "g") == 1
