"""A process that shares a store of marks with another: `python -m tests.middleware.deduplicating URL GROUP`.

It has a broker of its own, in memory, with the same messages as the other. What it handles is a line each on standard output.
First comes "held", with which it never ends; the others once there is a line on standard input; and "rest" when these are done.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import create_async_engine

from things_kit import Message, connect
from things_kit.middleware import deduplicate
from things_kit.testing.conformance.waiting import eventually

HELD: Final = "held"
REST: Final = "rest"
IDS: Final = tuple(str(number) for number in range(40))
LEASE: Final = 4.0


@asynccontextmanager
async def store_at(url: str) -> AsyncIterator[Any]:
    """What `deduplicate` takes, for a URL of Redis or of SQLAlchemy."""
    if url.startswith("redis"):
        async with Redis.from_url(url) as client:
            yield client
    else:
        engine = create_async_engine(url)
        yield engine
        await engine.dispose()


def messages(*ids: str) -> list[Message]:
    return [Message("orders", b"", id=each) for each in ids]


async def main(url: str, group: str) -> None:
    async def handle(message: Message) -> None:
        print(message.id, flush=True)
        if message.id == HELD:
            await asyncio.Event().wait()
        await asyncio.sleep(0.002)

    async with store_at(url) as store, connect("memory://") as broker:
        once = deduplicate(store, lease=LEASE)
        async with broker.consumer("orders", group=group, handler=handle, concurrency=4, middleware=[once]):
            await broker.producer().publish_batch(messages(HELD))
            await asyncio.to_thread(sys.stdin.readline)
            await broker.producer().publish_batch(messages(*IDS))

            async def only_held() -> bool:
                return await broker.lag("orders", group=group) == 1

            await eventually(only_held, 30, "the others are done")
            print(REST, flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
