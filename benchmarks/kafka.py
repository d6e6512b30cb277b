"""The driver for Kafka against the client it is built on, and against FastStream, all on one real broker."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

from benchmarks.common import consume, messages
from benchmarks.faststream import FastStream
from benchmarks.result import Consumed, Result, Stopwatch, rate
from benchmarks.rounds import Rates, name, not_measured, running
from things_kit import Broker, Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.kafka import KafkaServer

COUNT = 1_000_000
DISTINCT = 100_000
"""So many messages are made, and each is published several times: a million would fill the memory."""
CHUNK = 10_000
CALLS = 1_000
ROUNDS = 100
RATE = 1_000
SECONDS = 3
RUNS = 3
PATIENCE = 60


# --- the client alone


def produce_raw(brokers: str, topic: str, rows: list[Message]) -> None:
    """The same messages, from as safe a producer, which is told of every delivery."""
    confluent = import_module("confluent_kafka")
    producer = confluent.Producer(
        {
            "bootstrap.servers": brokers,
            "enable.idempotence": True,
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 2 * COUNT,
        }
    )
    failed = 0

    def delivered(error: object, _: object) -> None:
        nonlocal failed
        failed += error is not None

    for number, message in enumerate(rows):
        producer.produce(
            topic, message.value, message.key, headers=[("type", b"bench")], on_delivery=delivered
        )
        if number % CHUNK == 0:
            producer.poll(0)
    assert producer.flush(PATIENCE) == 0
    assert failed == 0


def consume_raw(brokers: str, topic: str) -> Consumed:
    """Read every field of every message; commit after each batch without waiting for the answer, but for the last one's."""
    watch = Stopwatch()
    confluent = import_module("confluent_kafka")
    consumer = confluent.Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": name("raw"),
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            # As ours: by default it fetches nothing for a second once it has 100,000 records, and is a third as fast
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.subscribe([topic])
    seen = 0
    while seen < COUNT:
        batch = consumer.consume(500, 0.1)
        if batch:
            watch.first()
        for record in batch:
            assert record.error() is None
            record.topic(), record.partition(), record.offset()
            record.key(), record.value(), record.headers(), record.timestamp()
        seen += len(batch)
        if batch:
            consumer.commit(asynchronous=True)
    consumer.commit(asynchronous=False)
    consumer.close()
    return watch.consumed(seen)


# --- the driver


async def publish(broker: Broker, rows: list[Message]) -> None:
    """In batches, one after the other."""
    producer = broker.producer()
    for start in range(0, len(rows), CHUNK):
        await producer.publish_batch(rows[start : start + CHUNK])


async def publish_singly(broker: Broker, topic: str) -> float:
    """Publishes a second, a thousand calls at a time."""
    producer = broker.producer()
    rows = messages(CALLS, topic)

    async def rounds() -> None:
        for _ in range(ROUNDS):
            await asyncio.gather(*map(producer.publish, rows))

    await producer.publish(rows[0])
    return await rate(CALLS * ROUNDS, rounds)


async def latencies(broker: Broker, topic: str) -> list[float]:
    """Milliseconds from a publish to its handler, at RATE a second, ascending; the first second is not counted."""
    taken: list[float] = []
    done = asyncio.Event()

    async def handle(message: Message) -> None:
        taken.append(time.perf_counter() - float(message.headers["sent"]))
        if len(taken) == RATE * SECONDS:
            done.set()

    async with broker.consumer(topic, group=name("latency"), handler=handle, concurrency=8):
        producer = broker.producer()
        async with asyncio.TaskGroup() as tasks:
            begun = time.perf_counter()
            for number, row in enumerate(messages(RATE * SECONDS, topic)):
                await asyncio.sleep(max(0.0, begun + number / RATE - time.perf_counter()))
                sent = row.replace(headers={"sent": repr(time.perf_counter())})
                tasks.create_task(producer.publish(sent))
        await done.wait()
    return sorted(1e3 * seconds for seconds in taken[RATE:])


# --- all of it


class Figures(Rates):
    """What was measured in each round."""

    def __init__(self) -> None:
        super().__init__()
        self.singly: list[float] = []
        self.latencies: list[list[float]] = []


async def measure(server: KafkaServer, broker: Broker, rates: Figures) -> None:
    """One round: what is compared runs next to each other, as the machine may do other work meanwhile."""
    topic, raw_topic = name("bench"), name("raw")
    rows = messages(DISTINCT, topic) * (COUNT // DISTINCT)
    await broker.declare(topic)
    await broker.declare(raw_topic)

    def thread(work: Callable[..., None], *arguments: Any) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.to_thread(work, server.brokers, *arguments)

    rates.raw_published.append(await rate(COUNT, thread(produce_raw, raw_topic, rows)))
    rates.published.append(await rate(COUNT, lambda: publish(broker, rows)))
    rates.add(
        await asyncio.to_thread(consume_raw, server.brokers, topic),
        await consume(broker, COUNT, topic=topic, group=name("bench")),
    )
    rates.singly.append(await publish_singly(broker, name("singly")))
    rates.latencies.append(await latencies(broker, name("latency")))
    await broker.remove(topic)
    await broker.remove(raw_topic)


def rows(rates: Figures, faststream: FastStream) -> list[Result]:
    """A row for each bound. What has no other side is the best of all rounds."""
    singly, latency = max(rates.singly), min(rates.latencies, key=statistics.median)
    median, high = statistics.median(latency), latency[int(0.99 * len(latency))]
    return [
        *rates.rows(
            "kafka",
            "consume at least once, key order, concurrency 8, against raw consume(500)",
            "publish_batch, against raw produce",
            bounds=(0.6, 0.8),
        ),
        *faststream.rows(rates.consumed),
        Result(
            "kafka: 1,000 concurrent publish calls",
            f"{singly:,.0f} messages/s", "at least 30,000", singly >= 30_000,
        ),
        Result(
            f"kafka: latency from publish to handler at {RATE:,} a second",
            f"{median:.1f} ms median", "under 5 ms", median < 5, f"99th percentile {high:.1f} ms",
        ),
    ]  # fmt: skip


class FastKafka(KafkaServer):
    """As it is where it runs for long."""

    lasting = True


async def run() -> list[Result]:
    """Several rounds on one broker; a row that says why where there can be none."""
    rates = Figures()
    try:
        import_module("confluent_kafka")
        async with running(FastKafka) as server, connect(f"{server.url}?partitions=6") as broker:
            faststream = FastStream("kafka", server.brokers)
            for _ in range(RUNS):
                await measure(server, broker, rates)
                await faststream.round(broker)
    except (ModuleNotFoundError, ServerUnavailable) as reason:
        return not_measured("kafka", reason)
    return rows(rates, faststream)
