"""Two processes that have the same messages at the same time: the database has each effect once."""

import asyncio
import os

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from tests.patterns.mortal import ended, started
from things_kit import Message, connect
from things_kit.patterns import Inbox, Outbox

MESSAGES = 30


def engine_of(url: str) -> AsyncEngine:
    driver = "aiosqlite" if url.startswith("sqlite") else "asyncpg"
    return create_async_engine(url.replace("://", f"+{driver}://"), poolclass=NullPool)


async def prepare(url: str) -> None:
    engine = engine_of(url)
    await Outbox().create(engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effects (name TEXT)"))
    await engine.dispose()


async def race(url: str, ready: int, go: int) -> None:
    """Handle what a broker of this process alone has, which the other process has too; begin when told to."""
    engine = engine_of(url)
    inbox = Inbox(engine)

    async def handle(message: Message, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO effects VALUES (:name)"), {"name": message.id})

    async with (
        connect("memory://") as broker,
        broker.consumer("orders", group="g", handler=handle, middleware=[inbox], concurrency=4),
    ):
        os.write(ready, b"!")
        await asyncio.to_thread(os.read, go, 1)
        await broker.producer().publish_batch(
            [Message("orders", b"", id=str(number)) for number in range(MESSAGES)]
        )
        while await broker.lag("orders", "g"):  # noqa: ASYNC110 - only the broker knows
            await asyncio.sleep(0.01)
    await engine.dispose()


async def effects(url: str) -> list[str]:
    engine = engine_of(url)
    async with engine.connect() as connection:
        names = [name for (name,) in await connection.execute(text("SELECT name FROM effects"))]
    await engine.dispose()
    return names


def test_of_two_processes_with_the_same_messages_one_handles_each(database: str) -> None:
    asyncio.run(prepare(database))
    (ready, be_ready), (go, let_go) = os.pipe(), os.pipe()
    racers = [started(race(database, be_ready, go), within=60) for _ in range(2)]
    os.close(be_ready)
    for _ in racers:
        assert os.read(ready, 1), "one ended before it was ready"
    os.write(let_go, b"!!")
    assert [ended(racer) for racer in racers] == [0, 0]
    for end in (ready, go, let_go):
        os.close(end)
    assert sorted(asyncio.run(effects(database)), key=int) == [str(number) for number in range(MESSAGES)]
