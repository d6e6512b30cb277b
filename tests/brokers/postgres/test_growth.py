"""What a message costs does not grow with what waits, nor with what was settled and is not cleaned up yet."""

import contextlib
from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.brokers.postgres.given import Open, insert, join, message, take
from things_kit.testing.conformance.waiting import eventually

MESSAGES = 2000


@pytest.fixture
async def other(database: str) -> AsyncIterator[asyncpg.Connection]:
    """One more connection of another program."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.mark.parametrize("held_back", [False, True], ids=["vacuumed", "held back"])
async def test_what_waits_is_not_gone_through_for_each_message(
    connect: Open, sql: asyncpg.Connection, other: asyncpg.Connection, schema: str, *, held_back: bool
) -> None:
    """Plans are made while the tables are empty, as they are whenever a group has caught up.

    While another transaction is open nothing of what was settled can be cleaned up.
    """
    broker, second = await connect(), await connect()
    await broker.declare("t", ["g"])
    await sql.execute(f"VACUUM ANALYZE {schema}.loan, {schema}.queued")
    async with other.transaction() if held_back else contextlib.nullcontext():
        if held_back:
            await insert(other, schema, "a1", topic="other")
        receivers = [await join(broker), await join(second)]
        for start in range(0, MESSAGES, 500):
            sent = [message(b"x", b"%d" % (n % 40)) for n in range(start, start + 500)]
            assert not any(await broker.send(sent))
        left = MESSAGES
        while left:
            # Each has lanes of its own, and queues what belongs to the other's
            holding = [(receiver, await take(receiver, 100)) for receiver in receivers]
            for receiver, taken in holding:
                await receiver.settle(taken, [])
                left -= len(taken)

    for each in (broker, second):  # what a connection has done is counted at its end, else seconds later
        await each.close()

    async def counted() -> bool:
        return (await _of_tables(sql, schema, "n_tup_del", "loan")) == MESSAGES

    await eventually(counted, what="the server has counted all")
    rows = await _of_tables(sql, schema, "idx_tup_fetch + seq_tup_read", "loan", "queued")
    assert rows < 32 * MESSAGES, "rows of what is handed out and what is queued"
    entries = await _entries(sql, schema, "loan", "queued")
    assert entries < 150 * MESSAGES, "entries of the indexes of both, those included of what is settled"
    assert await _entries(sql, schema, "message%", index="%topic_xid%") < 5 * MESSAGES, (
        "entries of what is new"
    )


async def _entries(sql: asyncpg.Connection, schema: str, *tables: str, index: str = "%") -> int:
    """Entries of indexes that were read, those included of rows that are no more."""
    return int(
        await sql.fetchval(
            "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes "
            "WHERE schemaname = $1 AND relname LIKE ANY ($2) AND indexrelname LIKE $3",
            schema,
            list(tables),
            index,
        )
    )


async def _of_tables(sql: asyncpg.Connection, schema: str, counter: str, *tables: str) -> int:
    statement = (
        f"SELECT sum({counter})::bigint FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = ANY ($2)"
    )
    return int(await sql.fetchval(statement, schema, list(tables)))
