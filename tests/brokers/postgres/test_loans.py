"""What is handed out is noted in as few rows as it has ranges, and whatever becomes of parts of them, none of it is lost."""

import random
from typing import Any

import asyncpg
import pytest

from tests.brokers.postgres.given import Open, consistent, insert, join, message, names, publish, take
from things_kit.brokers.postgres.receiver import ranges
from things_kit.engine.collected import Collecting
from things_kit.engine.driver import Delivery, Marking, Release
from things_kit.messaging.names import REPLAY_GROUP

MANY = 150

PATIENT = "&lease=600"
"""However long the test takes: what is handed out is so until it is settled."""


async def rows(sql: asyncpg.Connection, schema: str) -> list[tuple[int, int]]:
    """The first and the last offset of each row of what is handed out."""
    found = await sql.fetch(f"SELECT off, last FROM {schema}.loan ORDER BY off")
    return [(row[0], row[1]) for row in found]


async def offsets(sql: asyncpg.Connection, schema: str) -> list[int]:
    return [off for first, last in await rows(sql, schema) for off in range(first, last + 1)]


def tokens(deliveries: list[Delivery]) -> list[Any]:
    return [delivery.token for delivery in deliveries]


def test_offsets_in_any_order_are_as_few_ranges_as_they_can_be() -> None:
    assert ranges([]) == ([], [])
    assert ranges([7]) == ([7], [7])
    assert ranges([5, 3, 4, 9, 1, 8]) == ([1, 3, 8], [1, 5, 9])


async def test_what_one_receiver_takes_is_one_row_and_its_settled_parts_are_cut_out(
    connect: Open, sql: asyncpg.Connection, schema: str
) -> None:
    broker = await connect(PATIENT)
    await broker.declare("t", ["g"])
    await broker.send([message(b"%d" % n, b"%d" % (n % 7)) for n in range(MANY)])
    receiver = await join(broker)
    taken = [*await take(receiver, limit=100), *await take(receiver, limit=100)]
    assert await rows(sql, schema) == [(0, 99), (100, 149)]
    for settled, left in [
        (range(10), [(10, 99), (100, 149)]),
        (range(95, 110), [(10, 94), (110, 149)]),
        ([20, 21, 30, 140], [(10, 19), (22, 29), (31, 94), (110, 139), (141, 149)]),
        (range(50, 150), [(10, 19), (22, 29), (31, 49)]),
        (range(MANY), []),
    ]:
        await receiver.settle([taken[number] for number in settled], [])
        assert await rows(sql, schema) == left
        assert await broker.lag("t", "g") == sum(last - first + 1 for first, last in left)


async def test_a_row_names_none_that_are_of_another_group(
    connect: Open, sql: asyncpg.Connection, schema: str
) -> None:
    broker = await connect(PATIENT)
    await broker.declare("t", ["g"])
    others = {REPLAY_GROUP: "another"}
    await broker.send([message(b"%d" % n, headers=others if n in {3, 4} else {}) for n in range(9)])
    receiver = await join(broker)
    assert names(await take(receiver)) == list("0125678")
    assert await rows(sql, schema) == [(0, 2), (5, 8)]
    await receiver.close()
    assert names(await take(await join(broker))) == list("0125678")


async def test_a_page_ends_before_it_is_too_large(
    connect: Open, sql: asyncpg.Connection, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("things_kit.brokers.postgres.functions.PAGE_BYTES", 1000)
    broker = await connect(PATIENT)
    await broker.declare("t", ["g"])
    await broker.send([message(b"x" * 400, b"a") for _ in range(4)] + [message(b"x" * 2000, b"a")] * 2)
    receiver = await join(broker)
    assert [len(await take(receiver)) for _ in range(3)] == [3, 2, 1]
    assert await rows(sql, schema) == [(0, 2), (3, 4), (5, 5)]


async def test_what_is_marked_keeps_its_mark_and_the_others_have_none(
    connect: Open, sql: asyncpg.Connection, schema: str
) -> None:
    broker = await connect(PATIENT)
    await broker.declare("t", ["g"])
    await publish(broker, "a1", "b2", "c3")
    receiver = await join(broker)
    taken = await take(receiver)
    assert isinstance(receiver.receiver, Marking)
    await receiver.receiver.mark(taken[1], 2)
    await receiver.settle(taken[:1], [])
    await receiver.close()
    again = await take(await join(broker))
    assert [(names([each]), each.suspect) for each in again] == [(["b2"], 2), (["c3"], 0)]


@pytest.mark.parametrize("ordering", ["key", "none", "partition"])
@pytest.mark.parametrize("seed", range(2))
async def test_whatever_becomes_of_parts_the_server_has_what_the_receivers_have(
    connect: Open, sql: asyncpg.Connection, schema: str, seed: int, ordering: Any
) -> None:
    """Some messages come by transactions that commit later than others, so that ids have gaps; some are of another group."""
    luck = random.Random(seed)
    broker = await connect(PATIENT)
    await broker.declare("t", ["g"])
    for start in range(0, 80, 40):
        async with sql.transaction():
            for first in (start, start + 20):
                await insert(sql, schema, *[f"x{n}" for n in range(first, first + 5)])
                await publish(broker, *[f"{luck.choice('abc')}{n}" for n in range(first + 5, first + 20)])
            await broker.lag("t", "g")  # what is committed has its place before what is not
        await broker.send([message(b"not ours", headers={REPLAY_GROUP: "another"})])
    holding: list[tuple[Collecting, list[Delivery]]] = [(await join(broker, ordering=ordering), [])]
    settled: list[str] = []
    while len(settled) < 80:
        receiver, mine = place = luck.choice(holding)
        mine += await take(receiver, limit=luck.randint(1, 40))
        if luck.random() < 0.15:
            holding.remove(place)
            await receiver.close()
        if len(holding) < luck.choice([1, 1, 3]):
            holding.append((await join(broker, ordering=ordering), []))
        if place in holding:
            done = [each for each in mine if luck.random() < 0.5]
            back = luck.sample(mine, len(mine) // 4) if luck.random() < 0.2 and ordering == "none" else []
            done = [each for each in done if each not in back]
            await receiver.settle(done, [Release(each, 0.0, 2) for each in back])
            settled += names(done)
            mine[:] = [each for each in mine if each not in done and each not in back]
        await consistent(sql, schema)
        assert await offsets(sql, schema) == sorted(token for _, held in holding for token in tokens(held))
    assert len(set(settled)) == 80
    assert await broker.lag("t", "g") == 0
