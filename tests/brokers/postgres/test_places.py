"""Places are given though nobody looks, so that who comes later need not wait for those of millions of messages."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.brokers.postgres.given import Open, Swept, insert, join, names, publish, take
from things_kit.brokers.postgres import driver
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.relay import Relay


async def placed(sql: asyncpg.Connection, schema: str) -> int:
    return int(await sql.fetchval(f"SELECT coalesce(sum(cardinality(seqs)), 0) FROM {schema}.segment"))


async def test_who_publishes_gives_places_to_it(
    connect: Open, sql: asyncpg.Connection, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "PLACE_EVERY", 0.01)
    broker = await connect()
    await broker.declare("t", [])
    await publish(broker, "a1", "b1")
    async with asyncio.timeout(20):
        while await placed(sql, schema) < 2:  # noqa: ASYNC110 - only the server knows
            await asyncio.sleep(0.01)
    await publish(broker, "a2")
    assert names(await take(await join(broker))) == ["a1", "b1", "a2"]


async def test_a_sweep_gives_places_to_what_foreign_transactions_have_published(
    connect: Open, sql: asyncpg.Connection, schema: str, swept: Swept
) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    await swept(broker)
    await insert(sql, schema, "a1", "a2")
    assert await placed(sql, schema) == 0
    await broker.upkeep.sweep()
    assert await placed(sql, schema) == 2
    assert names(await take(await join(broker))) == ["a1", "a2"]


async def test_a_consumer_has_patience_while_places_are_given(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To millions that takes longer than any other answer may; noted here, as a server that is slow at all would not show it."""
    broker = await connect()
    use, patience = broker.connections.use, dict[str, float | None]()

    @contextlib.asynccontextmanager
    async def noted(doing: str, within: float | None = None) -> AsyncIterator[Any]:
        patience[doing] = within
        async with use(doing, within) as connection:
            yield connection

    monkeypatch.setattr(broker.connections, "use", noted)
    await broker.declare("t", ["g"])
    assert patience.pop("giving messages their places") == driver.PLACING > broker.options.timeout
    assert names(await take(await join(broker))) == []
    assert patience["giving messages their places"] == driver.PLACING
    assert patience["subscribing to 't'"] is None


async def test_a_sweep_that_waits_for_a_topic_holds_no_group(
    connect: Open, sql: asyncpg.Connection, schema: str
) -> None:
    """Who removes a topic has locked it, and locks its groups then: each would wait for the other."""
    broker, other = await connect(), await connect()
    await broker.declare("t", ["g"])
    await sql.execute(f"UPDATE {schema}.consumer_group SET ephemeral = true")
    await sql.execute(
        f"INSERT INTO {schema}.receiver (grp, expires) SELECT id, now() FROM {schema}.consumer_group"
    )
    await insert(sql, schema, "a1")
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1"
    async with sql.transaction():
        await sql.execute(f"SELECT FROM {schema}.topic FOR UPDATE")
        sweeping = asyncio.create_task(broker.upkeep.sweep())
        await eventually(lambda: other.connections.rows("looking", waiting, f"%{schema}%"), what="it waits")
        await sql.execute(f"SELECT FROM {schema}.consumer_group FOR UPDATE NOWAIT")
    await sweeping


async def test_a_publish_of_few_bytes_asks_nothing_before(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one statement: who is far from the server pays for each round trip."""
    broker = await connect()
    await broker.declare("t", ["g"])
    execute, us, asked = asyncpg.Connection.execute, asyncio.current_task(), list[str]()

    async def noting(self: Any, statement: str, *arguments: Any, **options: Any) -> Any:
        if asyncio.current_task() is us:
            asked.append(statement)
        return await execute(self, statement, *arguments, **options)

    monkeypatch.setattr(asyncpg.Connection, "execute", noting)
    await publish(broker, "a1")
    assert asked == []


async def test_who_has_patience_takes_no_connection_that_has_fallen_silent(
    connect: Open, postgres: PostgresServer, url: str
) -> None:
    """It lay idle, so nobody has noticed; giving places may take a minute, and would wait for it that long."""
    async with Relay(postgres.port) as relay:
        through = url.replace(f":{postgres.port}/", f":{relay.port}/")
        broker = await connect("&timeout=1", at=through)
        together = (broker.connections.rows("waiting", "SELECT pg_sleep(0.1)") for _ in range(3))
        await asyncio.gather(*together)
        relay.half_open()
        async with asyncio.timeout(20):
            await broker.connections.rows("giving places", "SELECT 1", within=60)
            await broker.connections.rows("looking", "SELECT 1")


async def test_who_has_patience_takes_no_connection_that_is_in_the_middle_of_something(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a server's last word, with which it ended a statement: the client refuses the next one in words of its own."""
    broker = await connect("&timeout=1")
    await asyncio.gather(*(broker.connections.rows("waiting", "SELECT pg_sleep(0.1)") for _ in range(3)))
    execute, asked = asyncpg.Connection.execute, 0

    async def refusing(self: asyncpg.Connection, statement: str, *arguments: Any, **options: Any) -> Any:
        nonlocal asked
        if statement == "SELECT 1":
            asked += 1
            if asked < 3:
                raise asyncpg.InternalClientError(
                    "cannot switch to state 15; another operation (2) is in progress"
                )
        return await execute(self, statement, *arguments, **options)

    monkeypatch.setattr(asyncpg.Connection, "execute", refusing)
    [row] = await broker.connections.rows("giving places", "SELECT 2", within=60)
    assert (row[0], asked) == (2, 3)
