"""A process that dies at any await of the handling leaves each effect in the database once."""

import asyncio
import os
from collections.abc import Awaitable, Generator, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from tests.patterns.mortal import KILLED, child
from things_kit import Message, Topic, connect
from things_kit.messaging.handler import Handle
from things_kit.patterns import Inbox, Outbox

bills = Topic("bills", dict[str, str | None])

SURVIVED = 7
"""The exit code of a process whose handling had fewer awaits than it was to live for, and which died at its very end."""


class Doomed:
    """Awaits something, and has the process die at its await of this number, from 0."""

    def __init__(self, work: Awaitable[None], point: int) -> None:
        self._work, self._point = work, point

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._work.__await__()
        for number, waited in enumerate(steps):
            if number == self._point:
                os._exit(KILLED)
            yield waited


def engine_of(url: str) -> AsyncEngine:
    driver = "aiosqlite" if url.startswith("sqlite") else "asyncpg"
    return create_async_engine(url.replace("://", f"+{driver}://"), poolclass=NullPool)


async def serve(url: str, numbers: Sequence[int], point: int | None = None) -> None:
    """Handle the messages of these numbers, which come twice; with a `point`, die at that await of the one there is, or at its end."""
    engine = engine_of(url)

    def dying(handle: Handle) -> Handle:
        async def died(message: Message) -> None:
            if point is not None:
                await Doomed(handle(message), point)
                os._exit(SURVIVED)
            await handle(message)

        return died

    async def handle(message: Message, session: AsyncSession) -> dict[str, str | None]:
        await session.execute(text("INSERT INTO effects VALUES (:name)"), {"name": message.id})
        await session.commit()
        await session.execute(text("INSERT INTO effects VALUES (:name)"), {"name": f"{message.id}-too"})
        return {"order": message.id}

    middleware: list[Any] = [dying, Inbox(engine, outbox=Outbox())]
    async with (
        connect("memory://") as broker,
        broker.consumer("orders", group="g", handler=handle, middleware=middleware, publish=bills),
    ):
        messages = [Message("orders", b"", id=str(number)) for number in numbers]
        await broker.producer().publish_batch(messages * (2 if point is None else 1))
        while await broker.lag("orders", "g"):  # noqa: ASYNC110 - only the broker knows
            await asyncio.sleep(0.01)
    await engine.dispose()


async def prepare(url: str) -> None:
    engine = engine_of(url)
    async with connect(url) as broker:
        await broker.declare(bills, ["r"])
        async with engine.begin() as connection:
            await connection.exec_driver_sql("CREATE TABLE effects (name TEXT)")
    await engine.dispose()


async def found(url: str) -> tuple[list[str], int | None]:
    """The effects, and how many bills there are."""
    engine = engine_of(url)
    async with engine.connect() as connection:
        names = [name for (name,) in await connection.execute(text("SELECT name FROM effects"))]
    await engine.dispose()
    async with connect(url) as broker:
        return sorted(names), await broker.lag(bills, "r")


def test_whenever_the_process_dies_each_effect_is_there_once(database: str) -> None:
    asyncio.run(prepare(database))
    code, count = KILLED, 0
    while code == KILLED:
        code = child(serve(database, [count], point=count))
        count += 1
    assert code == SURVIVED
    assert child(serve(database, range(count))) == 0
    names, published = asyncio.run(found(database))
    assert names == sorted([*map(str, range(count)), *(f"{number}-too" for number in range(count))])
    assert published == count
