"""The SQLite broker against raw sqlite3 with the same durability, in the same folder."""

import asyncio
import sqlite3
import tempfile
from pathlib import Path

from benchmarks.common import consume, messages
from benchmarks.result import Result, rate
from things_kit import Message, connect

COUNT = 500_000
CHUNK = 10_000
RUNS = 3


def insert_raw(path: Path, rows: list[Message]) -> None:
    """The same rows, with executemany, a transaction each CHUNK, WAL and synchronous=FULL."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE message (seq INTEGER PRIMARY KEY, key BLOB, value BLOB, headers TEXT)")
    for start in range(0, len(rows), CHUNK):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO message (key, value, headers) VALUES (?, ?, ?)",
            [(m.key, m.value, '{"type":"bench"}') for m in rows[start : start + CHUNK]],
        )
        connection.execute("COMMIT")
    connection.close()


async def once(folder: Path, number: int) -> tuple[float, float, float]:
    """Raw inserts, publishes and consumed messages a second."""
    rows = messages(COUNT)
    raw = await rate(COUNT, lambda: asyncio.to_thread(insert_raw, folder / f"raw-{number}.db", rows))
    async with connect(f"sqlite:///{folder}/kit-{number}.db") as broker:
        await broker.declare("bench", ["bench"])
        producer = broker.producer()

        async def publish() -> None:
            for start in range(0, COUNT, CHUNK):
                await producer.publish_batch(rows[start : start + CHUNK])

        published = await rate(COUNT, publish)
        consumed = (await consume(broker, COUNT)).rate
    return raw, published, consumed


async def run() -> list[Result]:
    """The run with the best ratio, and the best rate of consuming."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        runs = [await once(Path(folder), number) for number in range(RUNS)]
    raw, published, _ = max(runs, key=lambda run: run[1] / run[0])
    consumed = max(run[2] for run in runs)
    return [
        Result(
            "sqlite: publish_batch, against raw executemany",
            f"{published / raw:.2f} of raw", "at least 0.6", published / raw >= 0.6,
            f"{published:,.0f} and {raw:,.0f} messages/s; one fsync a batch of {CHUNK:,}",
        ),
        Result(
            "sqlite: consume at least once, key order, concurrency 8",
            f"{consumed:,.0f} messages/s", "at least 150,000", consumed >= 150_000,
        ),
    ]  # fmt: skip
