"""The driver for RabbitMQ against pika alone, on one real broker: the same queues, properties, confirms and prefetch."""

import asyncio
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

from benchmarks.common import consume, messages
from benchmarks.faststream import FastStream
from benchmarks.result import Consumed, Result, Stopwatch, rate
from benchmarks.rounds import Rates, name, not_measured, running
from things_kit import Broker, Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.rabbitmq import RabbitMQServer

COUNT = 120_000
CHUNK = 5_000
PREFETCH = 1_000
ACK_EVERY = 100
RUNS = 4
SETTLE = 0.5


async def connected(server: RabbitMQServer) -> Any:
    """pika's asyncio connection, with an open channel."""
    pika = import_module("pika")
    adapter = import_module("pika.adapters.asyncio_connection")
    opened = asyncio.get_running_loop().create_future()
    connection = adapter.AsyncioConnection(
        pika.URLParameters(server.url),
        on_open_callback=lambda c: c.channel(on_open_callback=opened.set_result),
    )
    return connection, await opened


async def leave(connection: Any) -> None:
    """Close it, and wait for that."""
    closed = asyncio.get_running_loop().create_future()
    connection.add_on_close_callback(lambda *_: closed.set_result(None))
    connection.close()
    await closed


async def publish_raw(channel: Any, topic: str, rows: list[Message]) -> None:
    """The same messages, mandatory and persistent, each chunk confirmed before the next."""
    properties = import_module("pika").BasicProperties
    confirmed = asyncio.Event()
    sent = acknowledged = 0

    def on_confirm(frame: Any) -> None:
        nonlocal acknowledged
        acknowledged = (
            max(acknowledged, frame.method.delivery_tag) if frame.method.multiple else acknowledged + 1
        )
        if acknowledged >= sent:
            confirmed.set()

    selected = asyncio.get_running_loop().create_future()
    channel.confirm_delivery(on_confirm, callback=selected.set_result)
    await selected
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        confirmed.clear()
        sent += len(chunk)
        for number, row in enumerate(chunk):
            sending = properties(
                headers={"type": "bench", "tk-time": "2026-01-01T00:00:00.000000+00:00"},
                delivery_mode=2,
                message_id=f"0123456789abcdef01234567-{number}",
                timestamp=1_767_225_600,
            )
            channel.basic_publish(topic, row.key.decode(), row.value, sending, mandatory=True)  # type: ignore[union-attr]
            if number % 200 == 199:
                await asyncio.sleep(0)
        await confirmed.wait()


async def consume_raw(channel: Any, queue: str) -> Consumed:
    """Read what a message is made of, and acknowledge a hundred at a time; the server has seen all of it once it cancels."""
    watch = Stopwatch()
    done = asyncio.Event()
    seen = 0

    def on_message(_: Any, method: Any, properties: Any, body: bytes) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            watch.first()
        method.routing_key, properties.headers, properties.message_id, properties.timestamp, len(body)
        if seen % ACK_EVERY == 0:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if seen == COUNT:
            done.set()

    channel.basic_qos(prefetch_count=PREFETCH)
    tag = channel.basic_consume(queue, on_message)
    await done.wait()
    cancelled = asyncio.get_running_loop().create_future()
    channel.basic_cancel(tag, callback=cancelled.set_result)
    await cancelled
    return watch.consumed(seen)


async def publish(broker: Broker, rows: list[Message]) -> None:
    """In batches, one after the other."""
    producer = broker.producer()
    for start in range(0, len(rows), CHUNK):
        await producer.publish_batch(rows[start : start + CHUNK])


async def measure(server: RabbitMQServer, broker: Broker, rates: Rates, ours_first: bool) -> None:
    """One round: what is compared runs next to each other, in turn: the broker still tidies up after the one before."""
    topic, raw_topic = name("bench"), name("raw")
    for each in (topic, raw_topic):
        await broker.declare(each, groups=["bench"])
    rows = messages(COUNT, topic)
    connection, channel = await connected(server)
    order = -1 if ours_first else 1
    for rated, action in (
        (rates.raw_published, lambda: publish_raw(channel, raw_topic, rows)),
        (rates.published, lambda: publish(broker, rows)),
    )[::order]:
        rated.append(await rate(COUNT, action))
    consumed: list[Consumed] = []
    sides: tuple[Callable[[], Awaitable[Consumed]], ...] = (
        lambda: consume_raw(channel, f"bench.{raw_topic}"),
        lambda: consume(broker, COUNT, topic=topic),
    )
    for consuming in sides[::order]:
        await asyncio.sleep(SETTLE)
        consumed.append(await consuming())
    rates.add(*consumed[::order])
    await leave(connection)
    for each in (topic, raw_topic):
        await broker.remove(each)


async def run() -> list[Result]:
    """Several rounds on one broker; a row that says why where there can be none."""
    rates = Rates()
    try:
        import_module("pika")
        async with running(RabbitMQServer) as server, connect(server.url) as broker:
            faststream = FastStream("rabbitmq", server.url)
            for number in range(RUNS):
                await measure(server, broker, rates, ours_first=number % 2 == 1)
                await faststream.round(broker)
    except (ModuleNotFoundError, ServerUnavailable) as reason:
        return not_measured("rabbitmq", reason)
    found = rates.rows(
        "rabbitmq",
        "consume at least once, key order, concurrency 8, against raw pika asyncio with batched acks",
        "publish_batch, against raw pika asyncio with confirms",
        bounds=(0.9, 1.0),
    )
    return [*found, *faststream.rows(rates.consumed)]
