"""Drivers on a schema of the test's own."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

pytest.importorskip("asyncpg")

import asyncpg

from tests.brokers.postgres.given import Open, Swept
from things_kit.brokers.postgres.driver import PostgresDriver
from things_kit.brokers.postgres.upkeep import Upkeep
from things_kit.engine.url import BrokerURL
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.postgres import PostgresServer

postgres = shared(PostgresServer, "postgres")


@pytest.fixture(scope="session")
def database(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
def schema() -> str:
    return f"s{uuid4().hex}"


@pytest.fixture
def url(database: str, schema: str) -> str:
    return f"{database}?schema={schema}"


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of another program."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> Swept:
    """Waits for a driver's first sweep."""
    sweep, over = Upkeep.sweep, defaultdict[Upkeep, asyncio.Event](asyncio.Event)

    async def noted(upkeep: Upkeep) -> None:
        await sweep(upkeep)
        over[upkeep].set()

    async def wait(driver: PostgresDriver) -> None:
        async with asyncio.timeout(60):
            await over[driver.upkeep].wait()

    monkeypatch.setattr(Upkeep, "sweep", noted)
    return wait


@pytest.fixture
async def connect(url: str) -> AsyncIterator[Open]:
    """Opens any number of drivers on one schema: to the server each is a process of its own."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_driver(query: str = "", at: str = url) -> PostgresDriver:
            made = PostgresDriver.from_url(BrokerURL.parse(at + query))
            stack.push_async_callback(made.close)
            await made.open()
            return made

        yield open_driver
