"""What is set up around a database ends what we do: each is an outage in one sentence, and all goes on afterwards."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from string import ascii_letters
from typing import Any

import asyncpg
import pytest

from tests.brokers.postgres.given import Open, join, message, names, publish, take
from things_kit.brokers.postgres.errors import ERRORS
from things_kit.engine.driver import ConnectionLost, Scheduled
from things_kit.engine.naming import LONGEST, check_name
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.schedule import LONGEST_ID, check_schedule_id
from things_kit.testing.conformance.waiting import eventually


async def needs(sql: asyncpg.Connection, setting: str) -> None:
    """Skip the test where the server is too old for this."""
    if not await sql.fetchval("SELECT count(*) FROM pg_settings WHERE name = $1", setting):
        pytest.skip(f"this server has no {setting}")


async def test_a_session_that_the_server_ends_for_its_idleness_is_replaced(
    connect: Open, sql: asyncpg.Connection
) -> None:
    await needs(sql, "idle_session_timeout")
    broker = await connect("&pool=1")
    await broker.declare("t", ["g"])
    async with broker.connections.use("setting a timeout") as connection:
        await connection.execute("SET idle_session_timeout = '50ms'")
    await eventually(connection.is_closed, what="the server has ended what was idle")
    await publish(broker, "a1")
    assert names(await take(await join(broker))) == ["a1"]


@pytest.mark.parametrize("setting", ["idle_in_transaction_session_timeout", "transaction_timeout"])
async def test_a_transaction_that_the_server_ends_is_an_outage(
    connect: Open, sql: asyncpg.Connection, setting: str
) -> None:
    """As when this process stands still between two statements, or the disk is slow."""
    await needs(sql, setting)
    broker = await connect()
    await broker.declare("t", ["g"])

    async def take_too_long() -> None:
        async with broker.connections.use("publishing") as connection, connection.transaction():
            await connection.execute(f"SET {setting} = '50ms'")
            await eventually(connection.is_closed, what="the server has ended it")
            await connection.execute("SELECT 1")

    with pytest.raises(ConnectionLost, match=r"^publishing: the server has closed the connection$"):
        await take_too_long()
    await publish(broker, "a1")
    assert names(await take(await join(broker))) == ["a1"]


async def test_a_lock_that_is_not_had_in_time_is_an_outage_of_whoever_waits(
    connect: Open, sql: asyncpg.Connection, schema: str
) -> None:
    broker = await connect("&pool=1")
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    await publish(broker, "a1")
    async with broker.connections.use("setting a timeout") as connection:
        await connection.execute("SET lock_timeout = '50ms'")
    async with sql.transaction():
        await sql.execute(f"SELECT FROM {schema}.consumer_group FOR UPDATE")
        with pytest.raises(ConnectionLost, match="something else holds a lock"):
            await take(receiver)
    async with broker.connections.use("setting a timeout") as connection:
        await connection.execute("RESET lock_timeout")
    assert names(await take(receiver)) == ["a1"]


async def test_a_server_that_does_not_answer_in_time_is_an_outage_that_says_so(connect: Open) -> None:
    broker = await connect("&pool=1")
    with pytest.raises(ConnectionLost, match=r"^looking: no answer within 0\.1 s$"):
        await broker.connections.rows("looking", "SELECT pg_sleep(60)", within=0.1)
    await broker.declare("t", ["g"])


async def test_a_publish_is_confirmed_before_anybody_is_notified(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within its transaction NOTIFY would have all publishers of the server commit one after another."""
    broker = await connect()
    await broker.declare("t", ["g"])
    use, done, rung = broker.connections.use, list[str](), asyncio.Event()

    @contextlib.asynccontextmanager
    async def noted(doing: str, within: float | None = None) -> AsyncIterator[Any]:
        async with use(doing, within) as connection:
            yield connection
        done.append(doing)
        if doing == "notifying":
            rung.set()

    monkeypatch.setattr(broker.connections, "use", noted)
    await publish(broker, "a1")
    assert "publishing" in done
    await rung.wait()
    assert done.index("publishing") < done.index("notifying")


def test_what_a_client_says_of_its_own_states_is_said_in_our_words() -> None:
    said = asyncpg.InternalClientError('cannot switch to state 12; protocol is in the "failed" state')
    lost = ERRORS.translate(said, "receiving from 'orders'")
    assert isinstance(lost, ConnectionLost)
    assert str(lost) == "receiving from 'orders': the server has closed the connection"


@pytest.mark.parametrize("code", ["25P03", "25P04"])
def test_a_transaction_that_took_too_long_is_said(code: str) -> None:
    ended = asyncpg.PostgresError.new({"C": code, "M": "terminating connection due to transaction timeout"})
    lost = ERRORS.translate(ended, "publishing")
    assert isinstance(lost, ConnectionLost)
    assert str(lost).startswith("publishing: the server ended the transaction: ")


async def test_the_longest_names_fit_into_every_index(connect: Open) -> None:
    """Of letters that cannot be compressed, which would hide what an index has no room for."""
    luck = random.Random(7)
    topic, group = ("".join(luck.choices(ascii_letters, k=LONGEST)) for _ in range(2))
    schedule_id = "".join(luck.choices(ascii_letters, k=LONGEST_ID))
    broker = await connect()
    await broker.declare(topic, [group])
    due = datetime.now(UTC) + timedelta(hours=1)
    assert await broker.schedule([Scheduled(message(topic=topic), due, schedule_id)]) == [None]
    assert await broker.cancel(topic, schedule_id)
    await publish(broker, "a1", topic=topic)
    assert names(await take(await join(broker, group, topic))) == ["a1"]


def test_longer_ones_are_refused_before_any_server_sees_them() -> None:
    with pytest.raises(ConfigError, match="schedule_id= has 513 bytes, and may have 512"):
        check_schedule_id("a" * 513)
    with pytest.raises(ConfigError, match="topic has 2001 bytes, and may have 2000"):
        check_name("topic", "a" * 2001)
    with pytest.raises(ConfigError, match="topic has 2002 bytes"):
        check_name("topic", "é" * 1001)
