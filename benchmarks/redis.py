"""The driver for Redis Streams against the client it is built on, on one real server."""

from importlib import import_module
from typing import Any

from benchmarks.common import consume, messages
from benchmarks.faststream import FastStream
from benchmarks.result import Consumed, Result, Stopwatch, rate
from benchmarks.rounds import Rates, name, not_measured, running
from things_kit import Broker, Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.redis import RedisServer

COUNT = 400_000
CHUNK = 10_000
PAGE = 1000
RUNS = 5


async def publish_raw(client: Any, topic: str, rows: list[Message]) -> None:
    """The same messages by pipelines of as many, without a transaction."""
    for start in range(0, len(rows), CHUNK):
        async with client.pipeline(transaction=False) as pipeline:
            for message in rows[start : start + CHUNK]:
                pipeline.xadd(topic, {"value": message.value, "key": message.key, "type": "bench"})
            await pipeline.execute()


async def consume_raw(client: Any, topic: str, group: str) -> Consumed:
    """Read every field of every message, and acknowledge each page in one command."""
    watch = Stopwatch()
    await client.xgroup_create(topic, group, "0")
    seen = 0
    while seen < COUNT:
        answer = await client.xreadgroup(group, "raw", {topic: ">"}, count=PAGE, block=1000)
        pages = answer.values() if isinstance(answer, dict) else (page for _, page in answer)
        for page in pages:
            watch.first()
            entries = page[0] if isinstance(answer, dict) else page
            for entry, fields in entries:
                assert entry
                fields[b"value"], fields[b"key"], fields[b"type"]
            await client.xack(topic, group, *(entry for entry, _ in entries))
            seen += len(entries)
    return watch.consumed(seen)


async def publish(broker: Broker, rows: list[Message]) -> None:
    """In batches, one after the other."""
    producer = broker.producer()
    for start in range(0, len(rows), CHUNK):
        await producer.publish_batch(rows[start : start + CHUNK])


async def measure(client: Any, broker: Broker, rates: Rates) -> None:
    """One round: what is compared runs next to each other, as the machine may do other work meanwhile."""
    topic, raw_topic = name("bench"), name("raw")
    rows = messages(COUNT, topic)
    rates.raw_published.append(await rate(COUNT, lambda: publish_raw(client, raw_topic, rows)))
    rates.published.append(await rate(COUNT, lambda: publish(broker, rows)))
    rates.add(
        await consume_raw(client, topic, name("raw")),
        await consume(broker, COUNT, topic=topic, group=name("bench")),
    )
    await broker.remove(topic)
    await broker.remove(raw_topic)


async def run() -> list[Result]:
    """Several rounds on one server; a row that says why where there can be none."""
    rates = Rates()
    try:
        redis = import_module("redis.asyncio")
        async with (
            running(RedisServer) as server,
            connect(server.url) as broker,
            redis.Redis(port=server.port, protocol=3) as client,
        ):
            faststream = FastStream("redis", server.url)
            for _ in range(RUNS):
                await measure(client, broker, rates)
                await faststream.round(broker)
    except (ModuleNotFoundError, ServerUnavailable) as reason:
        return not_measured("redis", reason)
    found = rates.rows(
        "redis",
        "consume at least once, key order, concurrency 8, against raw XREADGROUP with batched XACK",
        "publish_batch, against raw pipelined XADD",
        bounds=(0.9, 0.95),
    )
    return [*found, *faststream.rows(rates.consumed)]
