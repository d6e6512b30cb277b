"""The driver for Redis Streams against the client it is built on, on one real server."""

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
from things_kit.testing.servers.redis import RedisServer

COUNT = 100_000
CHUNK = 10_000
PAGE = 1000
RUNS = 5

_numbers = count()


def name(what: str) -> str:
    """A group or topic that nobody has used."""
    return f"{what}-{next(_numbers)}"


async def publish_raw(client: Any, topic: str, rows: list[Message]) -> None:
    """The same messages by pipelines of as many, without a transaction."""
    for start in range(0, len(rows), CHUNK):
        async with client.pipeline(transaction=False) as pipeline:
            for message in rows[start : start + CHUNK]:
                pipeline.xadd(topic, {"value": message.value, "key": message.key, "type": "bench"})
            await pipeline.execute()


async def consume_raw(client: Any, topic: str, group: str) -> None:
    """Read every field of every message, and acknowledge each page in one command."""
    await client.xgroup_create(topic, group, "0")
    seen = 0
    while seen < COUNT:
        answer = await client.xreadgroup(group, "raw", {topic: ">"}, count=PAGE, block=1000)
        pages = answer.values() if isinstance(answer, dict) else (page for _, page in answer)
        for page in pages:
            entries = page[0] if isinstance(answer, dict) else page
            for entry, fields in entries:
                assert entry
                fields[b"value"], fields[b"key"], fields[b"type"]
            await client.xack(topic, group, *(entry for entry, _ in entries))
            seen += len(entries)


async def publish(broker: Broker, rows: list[Message]) -> None:
    """In batches, one after the other."""
    producer = broker.producer()
    for start in range(0, len(rows), CHUNK):
        await producer.publish_batch(rows[start : start + CHUNK])


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[RedisServer]:
    """A Redis of this benchmark's own. Raises ServerUnavailable."""
    server = RedisServer()
    try:
        await asyncio.to_thread(server.start)
        yield server
    finally:
        await asyncio.to_thread(server.terminate)


class Rates:
    """What was measured in each round."""

    def __init__(self) -> None:
        self.raw_published: list[float] = []
        self.published: list[float] = []
        self.raw_consumed: list[float] = []
        self.consumed: list[float] = []


async def measure(client: Any, broker: Broker, rates: Rates) -> None:
    """One round: what is compared runs next to each other, as the machine may do other work meanwhile."""
    topic, raw_topic = name("bench"), name("raw")
    rows = messages(COUNT, topic)
    rates.raw_published.append(await rate(COUNT, lambda: publish_raw(client, raw_topic, rows)))
    rates.published.append(await rate(COUNT, lambda: publish(broker, rows)))
    rates.raw_consumed.append(await rate(COUNT, lambda: consume_raw(client, topic, name("raw"))))
    rates.consumed.append(await rate(COUNT, lambda: consume(broker, COUNT, topic=topic, group=name("bench"))))
    await broker.remove(topic)
    await broker.remove(raw_topic)


def compared(what: str, ours: list[float], theirs: list[float], bound: float) -> Result:
    """The median of the rounds: what is compared ran side by side, and a single round may have been disturbed."""
    ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
    middle = statistics.median
    notes = f"{middle(ours):,.0f} and {middle(theirs):,.0f} messages/s, medians of {len(ours)} rounds"
    return Result(what, f"{ratio:.2f} of raw", f"at least {bound}", ratio >= bound, notes)


async def run() -> list[Result]:
    """Several rounds on one server; a row that says why where there can be none."""
    rates = Rates()
    try:
        redis = import_module("redis.asyncio")
        async with (
            running() as server,
            connect(server.url) as broker,
            redis.Redis(port=server.port, protocol=3) as client,
        ):
            for _ in range(RUNS):
                await measure(client, broker, rates)
    except ModuleNotFoundError as error:
        reason = f"{error.name} is not installed: pip install things-kit[redis]"
        return [Result("redis", "not measured", "", True, reason)]
    except ServerUnavailable as reason:
        return [Result("redis", "not measured", "", True, str(reason))]
    return [
        compared(
            "redis: consume at least once, key order, concurrency 8, against raw XREADGROUP with batched XACK",
            rates.consumed, rates.raw_consumed, 0.4,
        ),
        compared("redis: publish_batch, against raw pipelined XADD", rates.published, rates.raw_published, 0.6),
    ]  # fmt: skip
