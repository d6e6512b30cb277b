"""What a message costs does not grow with what waits."""

import asyncpg

from tests.brokers.postgres.given import Open, join, message, take
from things_kit.testing.conformance.waiting import eventually

MESSAGES = 2000


async def test_what_waits_is_not_gone_through_for_each_message(
    connect: Open, sql: asyncpg.Connection, schema: str
) -> None:
    """Plans are made while the tables are empty, as they are whenever a group has caught up."""
    broker, other = await connect(), await connect()
    await broker.declare("t", ["g"])
    await sql.execute(f"VACUUM ANALYZE {schema}.loan, {schema}.queued")
    receivers = [await join(broker), await join(other)]
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

    async def counted() -> bool:  # the server counts a moment later
        return (await _of_tables(sql, schema, "n_tup_del", "loan")) == MESSAGES

    await eventually(counted, what="the server has counted all")
    rows = await _of_tables(sql, schema, "idx_tup_fetch + seq_tup_read", "loan", "queued")
    assert rows < 32 * MESSAGES, "rows of what is handed out and what is queued"
    entries = await sql.fetchval(
        "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE schemaname = $1 AND indexrelname LIKE '%topic_xid%'",
        schema,
    )
    assert entries < 5 * MESSAGES, "entries of the index that finds what is new"


async def _of_tables(sql: asyncpg.Connection, schema: str, counter: str, *tables: str) -> int:
    statement = (
        f"SELECT sum({counter})::bigint FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = ANY ($2)"
    )
    return int(await sql.fetchval(statement, schema, list(tables)))
