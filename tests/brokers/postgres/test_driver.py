"""The tables: made by anybody, at once, under any name; who may do what; and what is said where it cannot be."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.brokers.postgres.given import Open, Swept, consistent, insert, join, message, names, publish, take
from things_kit.brokers.postgres.driver import PostgresDriver
from things_kit.brokers.postgres.upkeep import Upkeep
from things_kit.engine.collected import Collected
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Scheduled, Subscription, UnknownTopic
from things_kit.engine.facts import Question
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError, PublishError
from things_kit.testing.conformance.waiting import eventually

HOUR = timedelta(hours=1)


@pytest.fixture
async def role(sql: asyncpg.Connection, database: str, schema: str) -> AsyncIterator[str]:
    """The URL of a user without rights; its name begins the login.

    Tests ask for it before they ask for `connect`, so that no driver changes tables while what it owns is dropped.
    """
    name = f"r{uuid4().hex}"
    await sql.execute(f"CREATE ROLE {name} LOGIN")
    yield database.replace("postgres@", f"{name}@") + f"?schema={schema}"
    await sql.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def user_of(url: str) -> str:
    return url.split("://")[1].split("@", maxsplit=1)[0]


# --- the tables


async def test_many_that_start_at_once_make_one_set_of_tables(connect: Open) -> None:
    brokers = await asyncio.gather(*(connect() for _ in range(8)))
    await brokers[0].declare("t", ["g"])
    await publish(brokers[1], "a1")
    assert names(await take(await join(brokers[2]))) == ["a1"]


@pytest.mark.parametrize("name", ['my "schema"', "it's; DROP TABLE x", "Grüße", "select"])
async def test_a_schema_may_have_any_name(database: str, name: str) -> None:
    from urllib.parse import quote  # noqa: PLC0415

    driver = PostgresDriver.from_url(BrokerURL.parse(f"{database}?schema={quote(name)}"))
    await driver.open()
    try:
        await driver.declare("t", ["g"])
        assert not any(await driver.send([message(b"x")]))
        assert names(await take(await join(driver))) == ["x"]
    finally:
        await driver.close()


@pytest.mark.parametrize("topic", ["'; DROP TABLE x; --", "$1", "Grüße 🎈", "a" * 3000])
async def test_a_topic_and_a_group_may_have_any_name(connect: Open, topic: str) -> None:
    broker = await connect()
    topic = topic[:2000]
    await broker.declare(topic, [topic])
    await publish(broker, "a1", topic=topic)
    assert names(await take(await join(broker, topic, topic))) == ["a1"]
    assert await broker.groups([topic]) == {topic: [topic]}


async def test_what_is_missing_is_made_only_where_that_is_wanted(connect: Open) -> None:
    with pytest.raises(ConfigError, match="has no tables of the broker, and declare is off"):
        await connect("&declare=false")


async def test_tables_of_a_newer_version_are_left_alone(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    await connect()
    await sql.execute(f"UPDATE {schema}.installation SET version = 99")
    with pytest.raises(ConfigError, match=r"newer version of this library \(version 99; known is"):
        await connect()


async def test_tables_that_a_migration_has_made_are_completed(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    from things_kit.brokers.postgres.schema import ddl  # noqa: PLC0415

    await sql.execute(f"CREATE SCHEMA {schema}")
    for statement in ddl(schema):
        await sql.execute(statement)
    await insert(sql, schema, "a1")
    broker = await connect()
    await broker.declare("t", ["g"])
    assert names(await take(await join(broker))) == ["a1"]


# --- rights


async def test_who_may_only_publish_publishes(
    role: str, connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    user = user_of(role)
    await sql.execute(
        f"""GRANT USAGE ON SCHEMA {schema} TO {user};
        GRANT SELECT ON {schema}.installation, {schema}.topic TO {user};
        GRANT INSERT ON {schema}.message, {schema}.scheduled TO {user};
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {user}"""
    )
    publisher = await connect(at=role)
    await publish(publisher, "a1")
    later = datetime.now(UTC) + HOUR
    assert await publisher.schedule([Scheduled(message(), later)]) == [None]
    named = [Scheduled(message(), later, "one")]
    [refused] = await publisher.schedule(named)
    assert isinstance(refused, PublishError)
    await sql.execute(f"GRANT SELECT, UPDATE ON {schema}.scheduled TO {user}")
    assert await publisher.schedule(named) == await publisher.schedule(named) == [None]
    assert len(await broker.upcoming("t", 10)) == 2
    [unknown] = await publisher.send([message(topic="other")])
    assert isinstance(unknown, UnknownTopic)
    with pytest.raises(ConfigError, match=r"the user lacks a right: permission denied .*GRANTs"):
        await join(publisher)
    assert names(await take(await join(broker))) == ["a1"]


async def test_who_may_not_create_consumes_for_ever(
    role: str, connect: Open, schema: str, sql: asyncpg.Connection, swept: Swept
) -> None:
    await swept(await connect())
    user = user_of(role)
    await sql.execute(
        f"""GRANT USAGE ON SCHEMA {schema} TO {user};
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {user};
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {user}"""
    )
    tables = [
        row[0] for row in await sql.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema)
    ]
    for table in tables:
        if table.startswith("message_") and table != "message_default":
            await sql.execute(f"DROP TABLE {schema}.{table}")
    broker = await connect(at=role)
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    await publish(broker, "a1")
    await receiver.settle(await take(receiver), [])
    await broker.upkeep.sweep()
    assert await broker.lag("t", "g") == 0
    facts = await broker.facts(Question())
    assert any(f.subject == "partitions" and f.level == "warning" for f in facts.findings)


async def test_who_may_nothing_is_told_so(role: str, connect: Open) -> None:
    with pytest.raises(ConfigError, match=r"the user lacks a right: permission denied for database"):
        await connect(at=role)


async def test_a_wrong_database_is_a_mistake_at_once(connect: Open, database: str) -> None:
    with pytest.raises(ConfigError, match='database "nowhere" does not exist'):
        await connect(at=database.rpartition("/")[0] + "/nowhere")


async def test_a_server_that_is_read_only_is_waited_for(
    role: str, connect: Open, sql: asyncpg.Connection
) -> None:
    await sql.execute(f"ALTER ROLE {user_of(role)} SET default_transaction_read_only = on")
    with pytest.raises(ConnectionLost, match="is read-only, as a replica is"):
        await connect(at=role)


async def test_a_statement_timeout_is_said(
    role: str, connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    user = user_of(role)
    await sql.execute(
        f"""GRANT ALL ON SCHEMA {schema} TO {user}; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {user};
        GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {user};
        ALTER ROLE {user} SET statement_timeout = '2s'"""
    )
    receiver = await join(await connect(at=role))
    async with sql.transaction():
        await sql.execute(f"SELECT FROM {schema}.consumer_group FOR UPDATE")
        with pytest.raises(ConnectionLost, match=r"statement timeout \(see statement_timeout of the user\)"):
            await take(receiver)


# --- what is kept


async def partitions(sql: asyncpg.Connection, schema: str) -> list[str]:
    rows = await sql.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = $1 AND tablename LIKE 'message\\_%' ORDER BY 1",
        schema,
    )
    return [row[0] for row in rows]


async def old_partition(sql: asyncpg.Connection, schema: str) -> None:
    """One of hours that are long over, as if its messages had been published then."""
    await sql.execute(
        f"CREATE TABLE {schema}.message_100_101 PARTITION OF {schema}.message FOR VALUES FROM (100) TO (101)"
    )


async def insert_old(sql: asyncpg.Connection, schema: str, value: bytes) -> None:
    await sql.execute(f"INSERT INTO {schema}.message (topic, value, bucket) VALUES ('t', $1, 100)", value)


async def test_a_partition_is_dropped_when_every_group_has_settled_it(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect("&retain=0")
    await broker.declare("t", ["g", "h"])
    await old_partition(sql, schema)
    await insert_old(sql, schema, b"old")
    for group in ("g", "h"):
        assert "message_100_101" in await partitions(sql, schema)
        receiver = await join(broker, group)
        [delivery] = await take(receiver)
        await broker.upkeep.sweep()
        assert "message_100_101" in await partitions(sql, schema)
        await receiver.settle([delivery], [])
        await broker.upkeep.sweep()
    assert "message_100_101" not in await partitions(sql, schema)
    await publish(broker, "a1")
    assert names(await take(await join(broker, "new"))) == ["a1"]


async def test_an_open_transaction_keeps_its_partition_alone(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect("&retain=0")
    await broker.declare("t", ["g"])
    await old_partition(sql, schema)
    receiver = await join(broker)
    async with sql.transaction():
        await insert_old(sql, schema, b"late")
        await broker.upkeep.sweep()
        await publish(broker, "a1")
        assert names(await take(receiver)) == ["a1"]
    await broker.upkeep.sweep()
    assert names(await take(receiver)) == ["late"]


async def test_messages_in_no_partition_are_handled_and_deleted(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect("&retain=0")
    await broker.declare("t", ["g"])
    await insert_old(sql, schema, b"nowhere")
    receiver = await join(broker)
    deliveries = await take(receiver)
    assert names(deliveries) == ["nowhere"]
    await receiver.settle(deliveries, [])
    await broker.upkeep.sweep()
    assert await sql.fetchval(f"SELECT count(*) FROM {schema}.message_default") == 0


async def test_a_new_group_begins_at_what_is_kept(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    await publish(broker, "a1", "a2")
    receiver = await join(broker)
    await receiver.settle(await take(receiver), [])
    await Upkeep(broker.connections, broker.options.schema, 0.0).sweep()
    await publish(broker, "a3")
    assert await broker.lag("t", "unborn") == 1
    assert names(await take(await join(broker, "new"))) == ["a3"]


# --- order


async def test_a_key_that_no_index_could_hold_has_an_order_too(connect: Open) -> None:
    broker = await connect()
    key = bytes(range(256)) * 200
    await broker.declare("t", ["g"])
    one, two = await join(broker), await join(broker)
    await broker.send([message(b"1", key), message(b"2", key), message(b"3", b"other")])
    [first] = await take(one, limit=1)
    assert names(await take(two)) == ["3"]
    await one.settle([first], [])
    assert names(await take(two)) == ["2"]


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_receivers_do_each_lane_keeps_its_order(
    connect: Open, schema: str, sql: asyncpg.Connection, seed: int
) -> None:
    """Receivers come, go, settle and release at random; each message is settled once, in the order of its key."""
    luck = random.Random(seed)
    broker = await connect()
    await broker.declare("t", ["g"])
    await publish(broker, *[f"{key}{number:03}" for number in range(60) for key in "abc-"])
    receivers = [await join(broker) for _ in range(3)]
    held: dict[int, list[Delivery]] = {}
    settled: list[str] = []
    while len(settled) < 240:
        receiver = luck.choice(receivers)
        mine = held.setdefault(id(receiver), [])
        mine += await take(receiver, limit=luck.randint(1, 20))
        luck.shuffle(mine)
        if luck.random() < 0.1 and mine:
            await receiver.close()
            held.pop(id(receiver))
            receivers[receivers.index(receiver)] = await join(broker)
        else:
            lanes: dict[bytes | None, list[Delivery]] = {}
            for delivery in sorted(mine, key=lambda d: d.token):
                lanes.setdefault(delivery.message.key, []).append(delivery)
            done = [lane[0] for key, lane in lanes.items() if key and luck.random() < 0.6]
            done += [each for each in lanes.get(None, []) if luck.random() < 0.6]
            # Who gives back the first of a lane gives back all that it has of it, as the engine does
            back = [
                lane for key, lane in lanes.items() if key and lane[0] not in done and luck.random() < 0.3
            ]
            given = [delivery for lane in back for delivery in lane]
            wait = luck.choice([0.0, 0.01])
            await receiver.settle(done, [Release(delivery, wait, 2) for delivery in given])
            settled += names(done)
            mine[:] = [delivery for delivery in mine if delivery not in done and delivery not in given]
        await consistent(sql, schema)
    for key in "abc":
        lane = [name for name in settled if name[0] == key]
        assert lane == sorted(lane)
    assert len(set(settled)) == 240
    assert await broker.lag("t", "g") == 0


# --- doctor


async def test_doctor_names_a_transaction_that_is_open_for_long(
    connect: Open, sql: asyncpg.Connection, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("things_kit.brokers.postgres.facts.LONG", 0.0)
    broker = await connect()
    await broker.declare("t", ["g"])
    await publish(broker, "a1")
    async with sql.transaction():
        await insert(sql, schema, "a2")
        facts = await broker.facts(Question(topic="t", group="other"))
    assert any(f.subject == "transactions" and f.level == "warning" for f in facts.findings)
    assert {(group.name, group.there) for group in facts.groups} == {("g", True), ("other", False)}
    assert facts.servers[0].product == "PostgreSQL"


# --- closing


async def test_closing_leaves_nothing_behind(connect: Open, sql: asyncpg.Connection, database: str) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    await publish(broker, "a1")
    await take(receiver)
    with contextlib.suppress(ConnectionLost):
        await receiver.close()
    await broker.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("things-kit-postgres")]
    mine = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'things-kit' AND datname = $1"

    async def gone() -> bool:
        return bool(await sql.fetchval(mine, database.rpartition("/")[2]))

    await eventually(gone)


async def test_a_receiver_that_closes_while_it_asks_does_not_come_back(
    connect: Open, sql: asyncpg.Connection, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that was cancelled is slow to reach the server, which would then lend to nobody for a whole lease."""
    broker = await connect()
    receiver = await broker.subscribe(Subscription(topic="t", group="g", inbox=Collected()))
    await publish(broker, "a1")
    asking, may_ask, answered, ask = asyncio.Event(), asyncio.Event(), asyncio.Event(), broker.ask_all

    async def ask_slowly(doing: str, call: str, *arguments: Any, within: float | None = None) -> Any:
        if not call.startswith("hand_out"):
            return await ask(doing, call, *arguments, within=within)
        asking.set()
        await may_ask.wait()
        try:
            return await ask(doing, call, *arguments, within=within)
        finally:
            answered.set()

    monkeypatch.setattr(broker, "ask_all", ask_slowly)
    fetching = asyncio.create_task(receiver.fetch(10, 5.0))
    await asking.wait()
    fetching.cancel()
    closing = asyncio.create_task(receiver.close())
    await asyncio.wait({closing}, timeout=0.2)
    may_ask.set()
    await closing
    await answered.wait()
    assert await sql.fetch(f"SELECT * FROM {schema}.loan") == []
    assert await sql.fetch(f"SELECT * FROM {schema}.receiver") == []
