"""The driver for NATS JetStream against the client it is built on, both on one real server."""

import asyncio
import contextlib
import statistics
from collections.abc import AsyncIterator
from importlib import import_module
from itertools import count
from typing import Any

from benchmarks.common import consume, messages
from benchmarks.result import Result, rate
from things_kit import Broker, Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.nats import NATSServer

COUNT = 30_000
BATCH = 500
RUNS = 5

_numbers = count()


def name(what: str) -> str:
    """A group or topic that nobody has used."""
    return f"{what}-{next(_numbers)}"


async def consume_raw(stream: Any, topic: str) -> None:
    """Read every field of every message, and acknowledge each."""
    reader = await stream.pull_subscribe(topic, durable=name("raw"))
    seen = 0
    while seen < COUNT:
        for msg in await reader.fetch(BATCH, timeout=5):
            at = msg.metadata
            read = (msg.subject, msg.data, msg.headers, at.sequence.stream, at.timestamp, at.num_delivered)
            assert all(field is not None for field in read)
            await msg.ack()
            seen += 1
    await reader.unsubscribe()


async def publish_raw(stream: Any, topic: str, rows: list[Message]) -> None:
    """So many at once, each waiting for its own confirmation, as nats-py has it."""
    for start in range(0, len(rows), BATCH):
        waiting = [
            await stream.publish_async(
                topic, row.value, headers={"type": "bench", "Nats-Msg-Id": f"{topic}-{start}-{index}"}
            )
            for index, row in enumerate(rows[start : start + BATCH])
        ]
        await asyncio.gather(*waiting)


async def publish(broker: Broker, rows: list[Message]) -> None:
    """In batches, one after the other."""
    producer = broker.producer()
    for start in range(0, len(rows), 10_000):
        await producer.publish_batch(rows[start : start + 10_000])


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[NATSServer]:
    """A NATS of this benchmark's own. Raises ServerUnavailable."""
    server = NATSServer()
    try:
        await asyncio.to_thread(server.start)
        yield server
    finally:
        await asyncio.to_thread(server.terminate)


async def run() -> list[Result]:
    """Several rounds on one server; a row that says why where there can be none."""
    consumed: list[tuple[float, float]] = []
    published: list[tuple[float, float]] = []
    try:
        nats = import_module("nats")
        async with running() as server, connect(server.url) as broker:
            client = await nats.connect(server.url)
            stream = client.jetstream(publish_async_max_pending=BATCH)
            for _ in range(RUNS):
                topic, raw_topic = name("bench"), name("raw")
                rows = messages(COUNT, topic)
                await broker.declare(topic)
                await broker.declare(raw_topic)
                ours = await rate(COUNT, lambda: publish(broker, rows))  # noqa: B023 - called at once
                theirs = await rate(COUNT, lambda: publish_raw(stream, raw_topic, rows))  # noqa: B023
                published.append((ours, theirs))
                theirs = await rate(COUNT, lambda: consume_raw(stream, topic))  # noqa: B023
                ours = await rate(COUNT, lambda: consume(broker, COUNT, topic=topic, group=name("bench")))  # noqa: B023
                consumed.append((ours, theirs))
                await broker.remove(topic)
                await broker.remove(raw_topic)
            await client.close()
    except ModuleNotFoundError as error:
        return [_skipped(f"{error.name} is not installed: pip install things-kit[nats]")]
    except ServerUnavailable as reason:
        return [_skipped(str(reason))]
    return [
        _compared(
            "consume at least once, key order, concurrency 8, against raw pull with explicit acks",
            consumed,
            0.85,
        ),
        _compared("publish_batch, against raw publish_async", published, 0.85),
    ]


def _skipped(reason: str) -> Result:
    return Result("nats", "not measured", "", True, reason)


def _compared(what: str, rates: list[tuple[float, float]], bound: float) -> Result:
    """The median of the rounds: what is compared ran side by side, and a single round may have been disturbed."""
    ratio = statistics.median(ours / theirs for ours, theirs in rates)
    ours, theirs = (statistics.median(side) for side in zip(*rates, strict=True))
    notes = f"{ours:,.0f} and {theirs:,.0f} messages/s, medians of {len(rates)} rounds"
    return Result(f"nats: {what}", f"{ratio:.2f} of raw", f"at least {bound}", ratio >= bound, notes)
