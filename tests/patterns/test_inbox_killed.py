"""A process that dies at any await of the handling leaves each effect in the database once."""

import asyncio

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from tests.patterns.mortal import KILLED, child, doom
from things_kit import Message, connect
from things_kit.patterns import Inbox, Outbox

POINTS = 40
"""Turns of the event loop from the beginning of a transaction at which the process dies: beyond the commit on both databases."""


async def serve(url: str, point: int | None) -> None:
    """Handle what is there, twins included; with a `point`, die so many turns after the first transaction began."""
    driver = "aiosqlite" if url.startswith("sqlite") else "asyncpg"
    engine = create_async_engine(url.replace("://", f"+{driver}://"), poolclass=NullPool)
    outbox = Outbox()
    inbox = Inbox(engine, outbox=outbox)

    class Doomed(Inbox):
        async def begin(self):  # type: ignore[no-untyped-def] # as the inbox's
            doom(point)
            return await super().begin()

    if point is not None:
        inbox = Doomed(engine, outbox=outbox)

    async def handle(message: Message, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO effects VALUES (:name)"), {"name": message.id})
        await outbox.publish(session, Message("results", message.value, id=message.id))
        await session.commit()
        await session.execute(text("INSERT INTO effects VALUES (:name)"), {"name": f"{message.id}-too"})

    async with (
        connect(f"{url}?lease=0.5") as broker,
        broker.consumer("orders", group="g", handler=handle, middleware=[inbox]),
    ):
        while await broker.lag("orders", "g"):  # noqa: ASYNC110 - only the broker knows
            await asyncio.sleep(0.01)
    await engine.dispose()


async def prepare(url: str) -> None:
    driver = "aiosqlite" if url.startswith("sqlite") else "asyncpg"
    engine = create_async_engine(url.replace("://", f"+{driver}://"), poolclass=NullPool)
    async with connect(url) as broker:
        await broker.declare("orders", ["g"])
        await broker.declare("results", ["r"])
        twice = [Message("orders", b"", id=str(point)) for point in range(POINTS) for _ in range(2)]
        await broker.producer().publish_batch(twice)
        async with engine.begin() as connection:
            await connection.exec_driver_sql("CREATE TABLE effects (name TEXT)")
    await engine.dispose()


async def found(url: str) -> tuple[list[str], int | None]:
    driver = "aiosqlite" if url.startswith("sqlite") else "asyncpg"
    engine = create_async_engine(url.replace("://", f"+{driver}://"), poolclass=NullPool)
    async with engine.connect() as connection:
        names = [name for (name,) in await connection.execute(text("SELECT name FROM effects"))]
    await engine.dispose()
    async with connect(url) as broker:
        return sorted(names), await broker.lag("results", "r")


def test_whenever_the_process_dies_each_effect_is_there_once(database: str) -> None:
    asyncio.run(prepare(database))
    codes = [child(serve(database, point)) for point in range(POINTS)]
    assert codes.count(KILLED) > POINTS // 2, codes
    assert child(serve(database, None)) == 0
    names, results = asyncio.run(found(database))
    assert names == sorted([*map(str, range(POINTS)), *(f"{point}-too" for point in range(POINTS))])
    assert results == POINTS
