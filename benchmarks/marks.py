"""What an inbox's marks cost when there are many: `python -m benchmarks.marks SQLALCHEMY_URL [COUNT]`.

Marks are made and looked for among none and among COUNT (2,000,000), half of which have expired; then those are swept
away while messages go on being marked.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from things_kit.patterns import Inbox, Outbox

ROUND = 1000
"""Marks in one measurement, each in a transaction of its own."""

FILL = {
    "postgresql": (
        "INSERT INTO things_kit.inbox SELECT 'billing', 'orders', md5(n::text), CASE WHEN n % 2 = 0 THEN 0 ELSE :later END "
        "FROM generate_series(1, :count) n"
    ),
    "sqlite": (
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < :count) INSERT INTO things_kit_inbox "
        "SELECT 'billing', 'orders', hex(randomblob(16)), CASE WHEN n % 2 = 0 THEN 0 ELSE :later END FROM c"
    ),
}
"""Marks of random ids, as ids of messages are: each is written to another page."""


@asynccontextmanager
async def prepared(url: str) -> AsyncIterator[tuple[AsyncEngine, Inbox]]:
    """An engine whose database has the tables."""
    engine = create_async_engine(url)
    outbox = Outbox()
    await outbox.create(engine)
    if engine.dialect.name == "sqlite":
        async with engine.connect() as connection:
            await connection.execute(text("PRAGMA journal_mode = WAL"))  # as connecting to the broker does
    try:
        yield engine, Inbox(engine, outbox=outbox)
    finally:
        await engine.dispose()


async def mark(engine: AsyncEngine, inbox: Inbox, name: str) -> tuple[float, bool]:
    """Seconds that it took in a transaction of its own, and whether there was no mark."""
    now = time.time()
    parameters = {"grp": "billing", "topic": "orders", "id": name, "now": now, "expires": now + 3600}
    begun = time.perf_counter()
    async with engine.begin() as connection:
        found = await connection.execute(text(inbox.marks.mark), parameters)
    return time.perf_counter() - begun, bool(found.rowcount)


async def measured(engine: AsyncEngine, inbox: Inbox, what: str) -> None:
    """Print how long it takes to mark a new message, and to find that one is marked."""
    for kind, fresh in (("new", True), ("marked", False)):
        took = [await mark(engine, inbox, f"{what}-{number}") for number in range(ROUND)]
        assert all(was_new is fresh for _, was_new in took)
        print(f"{what}: {kind}: {_said([each for each, _ in took])}")


async def swept(engine: AsyncEngine, inbox: Inbox) -> None:
    """Print how long the sweep takes, and how long marks take meanwhile."""
    begun = time.perf_counter()
    sweeping = asyncio.create_task(inbox.sweep())
    took: list[float] = []
    while not sweeping.done():
        took.append((await mark(engine, inbox, f"meanwhile-{len(took)}"))[0])
        await asyncio.sleep(0.005)
    lasted, count = time.perf_counter() - begun, await sweeping
    print(f"swept {count:,} in {lasted:.1f} s, {count / lasted:,.0f} a second; meanwhile new: {_said(took)}")


def _said(took: list[float]) -> str:
    cuts = statistics.quantiles(took, n=100)
    return f"{1000 * cuts[49]:.2f} ms (half), {1000 * cuts[98]:.2f} ms (99 of 100), {1000 * max(took):.0f} ms (the last)"


async def run(url: str, count: int) -> None:
    """All in one database, which must have no tables of the schema `things_kit` yet."""
    async with prepared(url) as (engine, inbox):
        await measured(engine, inbox, "none before")
        begun = time.perf_counter()
        async with engine.begin() as connection:
            await connection.execute(
                text(FILL[engine.dialect.name]), {"count": count, "later": time.time() + 86400}
            )
        print(f"filled with {count:,} in {time.perf_counter() - begun:.1f} s")
        await measured(engine, inbox, f"{count:,} before")
        await swept(engine, inbox)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int((sys.argv[2:] or ["2000000"])[0])))
