"""Two processes that get the same messages, and one of them is killed."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.middleware.deduplicating import HELD, IDS, LEASE, REST, messages, store_at
from things_kit import Message, connect
from things_kit.middleware import deduplicate
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.redis import RedisServer

redis = shared(RedisServer, "redis")
postgres = shared(PostgresServer, "postgres")


@pytest.fixture(params=["sqlite", "postgres", "redis"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/marks.db"
    elif request.param == "redis":
        yield request.getfixturevalue("redis").url
    else:
        with request.getfixturevalue("postgres").database() as database:
            yield database.replace("://", "+asyncpg://", 1)


@asynccontextmanager
async def another(url: str, group: str) -> AsyncIterator[Process]:
    command = (sys.executable, "-m", "tests.middleware.deduplicating", url, group)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line_of(process: Process) -> str:
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert line, "the other process has ended"
    return line.decode().strip()


async def test_each_message_is_handled_by_one_and_what_a_killed_one_held_by_another(url: str) -> None:
    group, here, there = uuid4().hex, list[str](), list[str]()

    async def handle(message: Message) -> None:
        here.append(message.id or "")
        await asyncio.sleep(0.002)

    async with asyncio.timeout(100), store_at(url) as store, connect("memory://") as broker:
        once = deduplicate(store, lease=LEASE)
        await once.create()
        async with (
            another(url, group) as other,
            broker.consumer("orders", group=group, handler=handle, concurrency=4, middleware=[once]),
        ):
            assert await line_of(other) == HELD
            assert other.stdin is not None
            other.stdin.write(b"go\n")
            await broker.producer().publish_batch(messages(HELD, *IDS))
            while not there or there[-1] != REST:
                there.append(await line_of(other))
            assert HELD not in here
            other.kill()
            await eventually(lambda: HELD in here, 30, "its lease has ended")

            async def all_done() -> bool:
                return await broker.lag("orders", group=group) == 0

            await eventually(all_done, 30, "all is acknowledged")
    assert Counter(here + there) == Counter([HELD, *IDS, REST])
