"""A handler that writes to a database: whatever comes twice, or fails in between, is written once."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from examples.database import Account, Base, Handled, Orders
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from things_kit import Message, RetryPolicy, connect
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.postgres import PostgresServer

postgres = shared(PostgresServer, "postgres")

COUNT = 60
CUSTOMERS = 7


@pytest.fixture(params=["sqlite", "postgres"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    if request.param == "sqlite":
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
        yield await tables(engine)
        await engine.dispose()
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.database() as url:
        engine = create_async_engine(url.replace("://", "+asyncpg://"))
        yield await tables(engine)
        await engine.dispose()


async def tables(engine: AsyncEngine) -> AsyncEngine:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return engine


class Unlucky(Orders):
    """Fails now and then after it has written, and counts what was done all the same."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self.chance = random.Random(1)
        self.failures = 0

    async def bill(self, session: AsyncSession, message: Message) -> None:
        await super().bill(session, message)
        await session.flush()
        if self.chance.random() < 0.3:
            self.failures += 1
            raise ConnectionError("the network is not what it was")


async def test_what_a_handler_writes_happens_once_though_messages_come_twice_and_attempts_fail(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    messages = [
        Message("orders", b"%d" % amount, key=b"c-%d" % (amount % CUSTOMERS), id=f"o-{amount}")
        for amount in range(COUNT)
    ]
    orders = Unlucky(engine)
    async with connect(f"sqlite:///{tmp_path}/events.db") as broker:
        await broker.declare("orders", ["billing"])
        await broker.producer().publish_batch([*messages, *messages])
        retry = RetryPolicy(attempts=50, first=0.001, limit=0.01)
        consumer = broker.consumer("orders", group="billing", handler=orders, concurrency=8, retry=retry)
        async with consumer, asyncio.timeout(60):
            for _ in range(2 * COUNT):
                await orders.handled.acquire()
    assert orders.failures, "else this shows nothing"

    owed = Counter[str]()
    for amount in range(COUNT):
        owed[f"c-{amount % CUSTOMERS}"] += amount
    async with AsyncSession(engine) as session:
        accounts = {account.customer: account.owes for account in await session.scalars(select(Account))}
        assert accounts == owed
        assert await session.scalar(select(func.count()).select_from(Handled)) == COUNT
