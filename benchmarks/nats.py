"""The driver for NATS JetStream against the client it is built on, both on one real server."""

import asyncio
from importlib import import_module
from typing import Any

from benchmarks.common import consume, messages
from benchmarks.faststream import FastStream
from benchmarks.result import Consumed, Result, Stopwatch, rate
from benchmarks.rounds import Rates, name, not_measured, running
from things_kit import Broker, Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.nats import NATSServer

COUNT = 80_000
BATCH = 500
RUNS = 5


async def consume_raw(client: Any, stream: Any, topic: str) -> Consumed:
    """Read every field of every message, and acknowledge each; at the end the server has heard all of it."""
    watch = Stopwatch()
    reader = await stream.pull_subscribe(topic, durable=name("raw"))
    seen = 0
    while seen < COUNT:
        for msg in await reader.fetch(BATCH, timeout=5):
            watch.first()
            at = msg.metadata
            read = (msg.subject, msg.data, msg.headers, at.sequence.stream, at.timestamp, at.num_delivered)
            assert all(field is not None for field in read)
            await msg.ack()
            seen += 1
    await client.flush()
    await reader.unsubscribe()
    return watch.consumed(seen)


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


async def measure(client: Any, stream: Any, broker: Broker, rates: Rates) -> None:
    """One round: what is compared runs next to each other, as the machine may do other work meanwhile."""
    topic, raw_topic = name("bench"), name("raw")
    rows = messages(COUNT, topic)
    await broker.declare(topic)
    await broker.declare(raw_topic)
    rates.published.append(await rate(COUNT, lambda: publish(broker, rows)))
    rates.raw_published.append(await rate(COUNT, lambda: publish_raw(stream, raw_topic, rows)))
    rates.add(
        await consume_raw(client, stream, topic),
        await consume(broker, COUNT, topic=topic, group=name("bench")),
    )
    await broker.remove(topic)
    await broker.remove(raw_topic)


async def run() -> list[Result]:
    """Several rounds on one server; a row that says why where there can be none."""
    rates = Rates()
    try:
        nats = import_module("nats")
        async with running(NATSServer) as server, connect(server.url) as broker:
            client = await nats.connect(server.url)
            stream = client.jetstream(publish_async_max_pending=BATCH)
            faststream = FastStream("nats", server.url)
            for _ in range(RUNS):
                await measure(client, stream, broker, rates)
                await faststream.round(broker)
            await client.close()
    except (ModuleNotFoundError, ServerUnavailable) as reason:
        return not_measured("nats", reason)
    found = rates.rows(
        "nats",
        "consume at least once, key order, concurrency 8, against raw pull with explicit acks",
        "publish_batch, against raw publish_async",
        bounds=(0.85, 0.85),
    )
    return [*found, *faststream.rows(rates.consumed)]
