"""What a transaction pays for a message of an outbox, a handler for an inbox, and how fast a relay carries on."""

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from benchmarks.common import messages
from benchmarks.result import Result, rate
from benchmarks.rounds import against, not_measured, ratio, running
from things_kit import Message, connect
from things_kit.patterns import Inbox, Outbox
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.postgres import PostgresServer

TRANSACTIONS = 100
HANDLED = 200
CARRIED = 100_000
CHUNK = 10_000
RUNS = 9
"""Short rounds, and many: what else a machine does changes while they last."""
OUTBOX = Outbox()
TABLES = (
    "CREATE TABLE placed (id TEXT)",
    "CREATE TABLE plain (topic TEXT, key {bytes}, value {bytes}, headers TEXT, id TEXT, time TEXT, target TEXT)",
)
PLACE = "INSERT INTO placed VALUES ('o-1')"

_names = count()


def named(rows: list[Message]) -> list[Message]:
    """With ids that nobody else has, as a producer gives them."""
    return [row.replace(id=f"m-{next(_names)}") for row in rows]


# --- the outbox: a transaction that writes an order, and beside it a row or a message of the same size


async def publish_in_sqlite(path: Path) -> tuple[float, float]:
    """Transactions a second, with a message and with a row."""
    with closing(sqlite3.connect(path)) as session:

        async def beside(write: Callable[[Message], object]) -> float:
            rows = named(messages(TRANSACTIONS))

            async def run() -> None:
                for row in rows:
                    session.execute(PLACE)
                    write(row)
                    session.commit()

            return await rate(TRANSACTIONS, run)

        plain = "INSERT INTO plain VALUES (?, ?, ?, ?, ?, ?, ?)"
        theirs = await beside(lambda row: session.execute(plain, fields(row)))
        ours = await beside(lambda row: OUTBOX.publish_sync(session, row))
    return ours, theirs


async def publish_in_postgres(url: str) -> tuple[float, float]:
    """The same with asyncpg."""
    session = await import_module("asyncpg").connect(url)

    async def beside(write: Callable[[Message], Awaitable[object]]) -> float:
        rows = named(messages(TRANSACTIONS))

        async def run() -> None:
            for row in rows:
                async with session.transaction():
                    await session.execute(PLACE)
                    await write(row)

        return await rate(TRANSACTIONS, run)

    try:
        plain = "INSERT INTO plain VALUES ($1, $2, $3, $4, $5, $6, $7)"
        theirs = await beside(lambda row: session.execute(plain, *fields(row)))
        ours = await beside(lambda row: OUTBOX.publish(session, row))
    finally:
        await session.close()
    return ours, theirs


def fields(row: Message) -> tuple[object, ...]:
    """What a plain table has of a message."""
    return row.topic, row.key, row.value, '{"type":"bench"}', row.id, "2026-05-09T07:35:25.123456+00:00", None


# --- the inbox: a handler that writes an order in its transaction


async def handle_with_and_without(engine: AsyncEngine) -> tuple[float, float]:
    """Messages a second of a handler with a transaction, in which the inbox marks its message or not."""
    inbox = Inbox(engine)

    async def in_inbox(_: Message, session: AsyncSession) -> None:
        await session.execute(text(PLACE))

    async def alone(_: Message) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(text(PLACE))

    theirs = await handled(alone)
    return await handled(in_inbox, middleware=[inbox]), theirs


async def handled(handler: Callable[..., Awaitable[None]], **arguments: Any) -> float:
    """Messages a second, from the first one's publish until all are acknowledged."""
    async with (
        connect("memory://") as broker,
        broker.consumer("bench", group="bench", handler=handler, concurrency=8, **arguments),
    ):
        begun = time.perf_counter()
        await broker.producer().publish_batch(named(messages(HANDLED)))
        while await broker.lag("bench", "bench"):  # noqa: ASYNC110 - only the broker knows
            await asyncio.sleep(0.01)
        return HANDLED / (time.perf_counter() - begun)


# --- the relay


async def carried(source: str, target: str) -> float:
    """Messages a second that a relay carries on, which wait for it."""
    async with connect(source) as broker, connect(target) as other:
        await broker.declare("carried", ["bridge"])
        await other.declare("carried", ["bench"])
        rows = messages(CARRIED, "carried")
        for start in range(0, CARRIED, CHUNK):
            await broker.producer().publish_batch(rows[start : start + CHUNK])
        relay = OUTBOX.relay(broker, other, ["carried"])
        begun = time.perf_counter()
        async with relay:
            while relay.moved < CARRIED:  # noqa: ASYNC110 - it says how far it is
                await asyncio.sleep(0.01)
            took = time.perf_counter() - begun
            await relay.until_empty()
        return CARRIED / took


# --- rows


def compared(what: str, other: str, rounds: list[tuple[float, float]]) -> Result:
    """A row: how much is left of the rate without ours."""
    ours, theirs = [pair[0] for pair in rounds], [pair[1] for pair in rounds]
    return Result(what, f"{ratio(ours, theirs):.2f} of {other}", "", True, against(ours, theirs))


@asynccontextmanager
async def prepared(url: str) -> AsyncIterator[AsyncEngine]:
    """An engine whose database has the broker's tables and the application's."""
    scheme, _, rest = url.partition("://")
    driver, kind = ("aiosqlite", "BLOB") if scheme == "sqlite" else ("asyncpg", "BYTEA")
    engine = create_async_engine(f"{scheme}+{driver}://{rest}", pool_size=8)
    async with connect(url) as broker:
        await broker.declare("bench")
    async with engine.begin() as connection:
        for table in TABLES:
            await connection.execute(text(table.format(bytes=kind)))
    try:
        yield engine
    finally:
        await engine.dispose()


async def on_sqlite(folder: Path) -> list[Result]:
    """A file of its own, with one writer at a time."""
    url = f"sqlite:///{folder}/app.db"
    async with prepared(url) as engine:
        published = [await publish_in_sqlite(folder / "app.db") for _ in range(RUNS)]
        with_inbox = [await handle_with_and_without(engine) for _ in range(RUNS)]
    moved = await carried(f"sqlite:///{folder}/source.db", "memory://")
    return [
        compared(
            "outbox in SQLite: publish_sync in a transaction, against a plain INSERT of the same size there",
            "the INSERT's", published,
        ),
        compared(
            "inbox in SQLite: a handler with one INSERT, against its transaction without the inbox",
            "the rate without", with_inbox,
        ),
        Result("relay from SQLite to memory", f"{moved:,.0f} messages/s", "", True, f"{CARRIED:,} that waited"),
    ]  # fmt: skip


async def on_postgres() -> list[Result]:
    """On a server of its own, and to a Kafka of its own."""
    async with AsyncExitStack() as stack:
        try:
            import_module("asyncpg")
            server = await stack.enter_async_context(running(PostgresServer))
            kafka = await stack.enter_async_context(running(KafkaServer))
        except (ModuleNotFoundError, ServerUnavailable) as reason:
            return not_measured("postgres", reason)
        engine = await stack.enter_async_context(prepared(server.url))
        published = [await publish_in_postgres(server.url) for _ in range(RUNS)]
        with_inbox = [await handle_with_and_without(engine) for _ in range(RUNS)]
        moved = await carried(server.url, kafka.url)
    return [
        compared(
            "outbox in PostgreSQL: publish in a transaction of asyncpg, against a plain INSERT of the same size there",
            "the INSERT's", published,
        ),
        compared(
            "inbox in PostgreSQL: a handler with one INSERT, against its transaction without the inbox",
            "the rate without", with_inbox,
        ),
        Result("relay from PostgreSQL to Kafka", f"{moved:,.0f} messages/s", "", True, f"{CARRIED:,} that waited"),
    ]  # fmt: skip


async def run() -> list[Result]:
    """On both databases."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        return [*await on_sqlite(Path(folder)), *await on_postgres()]
