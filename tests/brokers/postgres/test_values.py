"""What a value may be: one that PostgreSQL, or whoever reads it, cannot have is refused alone, and holds nobody up."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest

from tests.brokers.postgres.given import Open, insert, join, message, names, take
from things_kit.brokers.postgres.errors import ERRORS
from things_kit.brokers.postgres.wire import refusal
from things_kit.engine.driver import Scheduled
from things_kit.messaging.errors import ConfigError, PublishError
from things_kit.messaging.names import REPLAY_GROUP
from things_kit.testing.conformance.waiting import eventually

MOMENT = timedelta(microseconds=1)


@pytest.fixture
async def latin(database: str, sql: asyncpg.Connection, schema: str) -> AsyncIterator[str]:
    """The URL of a database that has no letters but those of Western Europe."""
    name = f"latin{uuid4().hex}"
    await sql.execute(
        f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    yield f"{database.rpartition('/')[0]}/{name}?schema={schema}"
    await sql.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_null_character_refuses_its_message_and_no_other(connect: Open) -> None:
    """In a topic, an id, and the group that a replayed message is for; published, and scheduled."""
    broker = await connect()
    await broker.declare("t", ["g"])
    bad = [message(topic="a\0b"), message().replace(id="a\0b"), message(headers={REPLAY_GROUP: "a\0b"})]
    due = datetime.now(UTC) - timedelta(seconds=1)
    published = [message(b"a1"), *bad, message(b"a2")]
    scheduled = [Scheduled(each, due) for each in [message(b"a3"), *bad, message(b"a4")]]
    for first, *refused, last in (await broker.send(published), await broker.schedule(scheduled)):
        assert [type(each) for each in refused] == [PublishError] * 3
        assert all("no null character" in str(each) for each in refused)
        assert first is last is None
    assert sorted(names(await take(await join(broker)))) == ["a1", "a2", "a3", "a4"]


async def test_a_name_with_a_null_character_is_refused_in_a_sentence(connect: Open) -> None:
    broker = await connect()
    said = "PostgreSQL takes no null character in a text$"
    with pytest.raises(ConfigError, match=rf"^declaring 'a\\x00b': {said}"):
        await broker.declare("a\0b", [])
    with pytest.raises(ConfigError, match=said):
        await broker.declare("t", ["a\0b"])
    with pytest.raises(ConfigError, match=said):
        await join(broker, "a\0b")
    with pytest.raises(ConfigError, match=said):
        await broker.lag("t", "a\0b")
    with pytest.raises(ConfigError, match=said):
        await broker.remove("t", "a\0b")


async def test_a_header_may_have_a_null_character(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    assert await broker.send([message(headers={"a\0b": "c\0"})]) == [None]
    [delivery] = await take(await join(broker))
    assert delivery.message.headers == {"a\0b": "c\0"}


@pytest.mark.parametrize("count", [3, 60])
async def test_what_the_server_refuses_is_one_message_and_the_others_keep_their_order(
    latin: str, connect: Open, count: int
) -> None:
    broker = await connect(at=latin)
    await broker.declare("t", ["g"])
    sent = [message(f"a{number:02}".encode(), b"a") for number in range(count)]
    sent[1] = sent[1].replace(id="🎈")
    refused = {place: result for place, result in enumerate(await broker.send(sent)) if result is not None}
    assert list(refused) == [1]
    assert isinstance(refused[1], PublishError)
    assert str(refused[1]).startswith("publishing to 't': PostgreSQL cannot keep this value: ")
    assert names(await take(await join(broker))) == [
        f"a{number:02}" for number in range(count) if number != 1
    ]


async def test_a_name_that_the_server_refuses_is_a_mistake_and_no_outage(latin: str, connect: Open) -> None:
    broker = await connect(at=latin)
    with pytest.raises(ConfigError, match=r"^declaring '🎈': PostgreSQL cannot keep this value: "):
        await broker.declare("🎈", [])


def test_a_value_that_the_client_refuses_is_a_mistake_and_no_outage() -> None:
    said = asyncpg.DataError("invalid input for query argument $1: 1e99 (value out of int64 range)")
    assert isinstance(ERRORS.translate(said, "asking"), ConfigError)
    assert isinstance(ERRORS.refusal(said, "t"), PublishError)


# --- written by others


async def test_a_transaction_cannot_write_a_time_that_nobody_could_read(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    await connect()
    for time in ("4713-01-02 BC", "10000-01-02", "294276-12-31", "infinity"):
        for statement in (
            f"INSERT INTO {schema}.message (topic, value, time) VALUES ('t', '', '{time}')",
            f"INSERT INTO {schema}.scheduled (topic, value, due) VALUES ('t', '', '{time}')",
        ):
            with pytest.raises(asyncpg.CheckViolationError):
                await sql.execute(statement)


async def test_a_moment_that_stands_for_infinity_is_refused_and_the_next_one_is_not(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    times = [first, first + MOMENT, last - MOMENT, last]
    sent = [message().replace(timestamp=time) for time in times]
    results = await broker.send(sent)
    assert [type(result) for result in results] == [PublishError, type(None), type(None), PublishError]
    assert [delivery.message.timestamp for delivery in await take(await join(broker))] == times[1:3]
    assert [refusal(each) is not None for each in sent] == [True, False, False, True]


async def test_headers_that_a_transaction_wrote_otherwise_hold_nobody_up(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    written: dict[str | None, dict[str, str]] = {
        None: {},
        "": {},
        "no JSON": {},
        "[1]": {},
        '{"a": 1, "b": null, "c": [true], "d": "e"}': {"a": "1", "b": "", "c": "[true]", "d": "e"},
    }
    for headers in written:
        await sql.execute(
            f"INSERT INTO {schema}.message (topic, value, headers) VALUES ('t', '', $1)", headers
        )
    arrived = [delivery.message.headers for delivery in await take(await join(broker))]
    assert arrived == [*written.values()]


# --- lag


async def test_what_is_published_to_a_topic_that_nobody_declared_lags(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect()
    assert await broker.lag("t", "g") == 0
    await insert(sql, schema, "a1", "a2")
    await sql.execute(
        f"INSERT INTO {schema}.message (topic, value, target) VALUES ('t', 'g', 'g'), ('t', 'h', 'h')"
    )
    await sql.execute(
        f"""INSERT INTO {schema}.scheduled (topic, value, due)
        VALUES ('t', 'due', now()), ('t', 'not yet', now() + interval '1 hour')"""
    )
    assert (await broker.lag("t", "g"), await broker.lag("t", "h"), await broker.lag("t", "i")) == (4, 4, 3)
    await broker.declare("t", ["g"])
    assert await broker.lag("t", "g") == 4
    assert sorted(names(await take(await join(broker)))) == ["a1", "a2", "due", "g"]


async def test_lag_counts_no_message_twice_that_is_handed_out_meanwhile(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    await join(broker)
    assert not any(await broker.send([message(b"a1"), message(b"a2")]))
    assert await broker.lag("t", "g") == 2
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1"
    async with sql.transaction():
        await sql.execute(f"LOCK TABLE {schema}.queued IN ACCESS EXCLUSIVE MODE")
        asking = asyncio.create_task(broker.lag("t", "g"))
        await eventually(
            lambda: broker.connections.rows("looking", waiting, f"%{schema}%lag(%"), what="it waits"
        )
        handed_out = await sql.fetchval(
            f"SELECT offsets FROM {schema}.receiver r, {schema}.hand_out(r.grp, r.id, 9, 'key', 10, false)"
        )
        assert handed_out == [0, 1]
    assert await asking == 2
