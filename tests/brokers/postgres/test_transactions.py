"""What is published by transactions of others: when it comes, in which order, and whom it holds up."""

import asyncpg

from tests.brokers.postgres.given import Open, insert, join, names, publish, take


async def test_a_message_comes_when_its_transaction_commits_and_holds_up_nobody_until_then(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    transaction = sql.transaction()
    await transaction.start()
    await insert(sql, schema, "a1", "a2")
    await publish(broker, "a3", "b1")
    assert names(await take(receiver)) == ["a3", "b1"]
    await publish(broker, "b2")
    assert names(await take(receiver)) == ["b2"]
    await transaction.commit()
    assert names(await take(receiver)) == ["a1", "a2"]
    assert names(await take(receiver)) == []


async def test_what_was_rolled_back_never_comes_and_leaves_no_gap(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    transaction = sql.transaction()
    await transaction.start()
    await insert(sql, schema, "a1")
    await publish(broker, "b1")
    [first] = await take(receiver)
    await transaction.rollback()
    await publish(broker, "b2")
    [second] = await take(receiver)
    assert names([first, second]) == ["b1", "b2"]
    assert [first.token, second.token] == [0, 1]
    assert await broker.lag("t", "g") == 2


async def test_many_transactions_that_end_in_any_order_lose_nothing(
    connect: Open, schema: str, database: str
) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    connections = [await asyncpg.connect(database) for _ in range(6)]
    open_ones = []
    got: list[str] = []
    for number, connection in enumerate(connections):
        transaction = connection.transaction()
        await transaction.start()
        await insert(connection, schema, f"{number}x", f"{number}y")
        open_ones.append((number, transaction))
    for number, transaction in [open_ones[place] for place in (3, 0, 5, 1, 4, 2)]:
        await (transaction.rollback() if number == 1 else transaction.commit())
        got += names(await take(receiver))
    assert got == ["3x", "3y", "0x", "0y", "5x", "5y", "4x", "4y", "2x", "2y"]
    for connection in connections:
        await connection.close()


async def test_a_transaction_with_savepoints_is_one(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    async with sql.transaction():
        await insert(sql, schema, "a1")
        async with sql.transaction():
            await insert(sql, schema, "a2")
        await publish(broker, "b1")
        assert names(await take(receiver)) == ["b1"]
    assert names(await take(receiver)) == ["a1", "a2"]


async def test_a_message_may_be_there_before_its_topic(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect()
    await insert(sql, schema, "a1")
    await broker.declare("t", ["g"])
    assert names(await take(await join(broker))) == ["a1"]


async def test_a_transaction_tells_nobody_but_is_found_by_looking(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    broker = await connect("&poll=0.05")
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    await take(receiver)
    await insert(sql, schema, "a1")
    assert names(await take(receiver, wait=10)) == ["a1"]


async def test_another_process_is_told_of_what_was_published(connect: Open) -> None:
    """It looks by itself every hour."""
    broker, other = await connect("&poll=3600"), await connect("&poll=3600")
    await broker.declare("t", ["g"])
    receiver = await join(other)
    await take(receiver)
    await publish(broker, "a1")
    assert names(await take(receiver, wait=10)) == ["a1"]


async def test_what_is_scheduled_by_a_transaction_comes_when_it_is_due(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    """The same schedule_id again replaces; what is due comes in that order, behind what has a place."""
    broker = await connect()
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    later = f"""INSERT INTO {schema}.scheduled AS s (topic, value, due, schedule_id)
        VALUES ('t', $1, now() + make_interval(secs => $2), $3)
        ON CONFLICT (topic, schedule_id) DO UPDATE SET value = excluded.value, due = excluded.due"""
    async with sql.transaction():
        await sql.execute(later, b"in an hour", 3600, "one")
        await sql.execute(later, b"second", 0.2, None)
        await sql.execute(later, b"replaced", 3600, "two")
        await sql.execute(later, b"first", 0.1, "two")
    got: list[str] = []
    while len(got) < 2:
        got += names(await take(receiver, wait=10))
    assert got == ["first", "second"]
    assert await broker.lag("t", "g") == 2


async def test_tables_restored_from_a_server_with_higher_transaction_ids_go_on(
    connect: Open, schema: str, sql: asyncpg.Connection
) -> None:
    """What has a place is not handed out again, what has none is, and what comes now is."""
    broker = await connect()
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    await publish(broker, "a1", "a2")
    assert names(await take(receiver)) == ["a1", "a2"]
    await publish(broker, "a3")
    await sql.execute(f"UPDATE {schema}.topic SET seen = '4000000000:4000000000:'")
    await sql.execute(f"UPDATE {schema}.message SET xid = '4000000001' WHERE value = 'a3'")
    await publish(broker, "a4")
    assert names([*await take(receiver), *await take(receiver)]) == ["a3", "a4"]
    await publish(broker, "a5")
    assert names(await take(receiver)) == ["a5"]
