"""How long a message takes from its publish to its handler, ours beside the client alone: one at a time, and 1,000 a second.

Both sides publish with confirmation and acknowledge each message by itself, or, on Kafka, commit each batch without waiting.
"""

import asyncio
import gc
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from importlib import import_module
from typing import Any, Final, TypeAlias

import msgspec

from benchmarks.rabbitmq import connected, leave
from benchmarks.result import Result
from benchmarks.rounds import name, not_measured, running
from things_kit import Broker, Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.redis import RedisServer

ALONE: Final = 300
"""Messages one at a time, in one round."""

RATE: Final = 1_000
SECONDS: Final = 1
WARM: Final = 100
"""Messages that do not count, before each."""

RUNS: Final = 3
ABOVE: Final = 0.3
"""Milliseconds that our median may be above the client's."""

TAIL: Final = 2.0
"""Times the client's 99th percentile that ours may be."""

PATIENCE: Final = 30.0
VALUE: Final = b"x" * 200

Send: TypeAlias = Callable[[bytes], Awaitable[object]]
"""Publishes one message, and returns when it is confirmed."""

Side: TypeAlias = Callable[[Any, "Arrivals"], AbstractAsyncContextManager[Send]]
"""A consumer that tells the arrivals of each value, and what sends to it."""


class Arrivals:
    """When which message was sent, by its number, and how long each took."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.expected = 0
        self.done = asyncio.Event()

    def expect(self, count: int) -> None:
        """So many come now."""
        self.taken, self.expected = [], count
        self.done.clear()

    def came(self, value: bytes) -> None:
        """A message came, which says when it was sent."""
        self.taken.append(time.perf_counter() - float(value[:20]))
        if len(self.taken) == self.expected:
            self.done.set()


def stamped() -> bytes:
    """A value that says that it is sent now."""
    return b"%020.9f" % time.perf_counter() + VALUE[20:]


async def one_at_a_time(send: Send, arrivals: Arrivals, count: int) -> list[float]:
    """Seconds that each took, where the next is sent once one was handled and confirmed."""
    taken: list[float] = []
    for _ in range(count):
        arrivals.expect(1)
        await send(stamped())
        await arrivals.done.wait()
        taken += arrivals.taken
    return taken


async def at_a_rate(send: Send, arrivals: Arrivals) -> list[float]:
    """Seconds that each took, of as many as are sent in so many seconds."""
    arrivals.expect(WARM + RATE * SECONDS)
    async with asyncio.TaskGroup() as tasks:
        begun = time.perf_counter()
        for number in range(arrivals.expected):
            await asyncio.sleep(max(0.0, begun + number / RATE - time.perf_counter()))
            tasks.create_task(_sent(send))
    await arrivals.done.wait()
    return arrivals.taken[WARM:]


async def _sent(send: Send) -> None:
    await send(stamped())


class Taken(msgspec.Struct, frozen=True):
    """Milliseconds of one round."""

    median: float
    high: float


def summary(seconds: list[float]) -> Taken:
    """Half of the messages, and 99 of 100, took no longer."""
    cuts = statistics.quantiles(seconds, n=100)
    return Taken(1e3 * cuts[49], 1e3 * cuts[98])


async def round_of(side: Side, server: Any) -> tuple[Taken, Taken]:
    """One at a time, and many a second, once it is warm."""
    arrivals = Arrivals()
    async with asyncio.timeout(PATIENCE), side(server, arrivals) as send:
        await one_at_a_time(send, arrivals, WARM)
        gc.collect()
        alone = await one_at_a_time(send, arrivals, ALONE)
        return summary(alone), summary(await at_a_rate(send, arrivals))


# --- ours


@asynccontextmanager
async def ours(server: Any, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A producer and a consumer as they are by default."""
    async with connect(server.url) as broker:
        topic = name("latency")
        await broker.declare(topic, ["bench"])

        async def handle(message: Message) -> None:
            arrivals.came(message.value)

        async with broker.consumer(topic, group="bench", handler=handle, concurrency=8):
            yield _publishing(broker, topic)
        await broker.remove(topic)


def _publishing(broker: Broker, topic: str) -> Send:
    producer = broker.producer()
    return lambda value: producer.publish(Message(topic, value))


# --- the clients


@asynccontextmanager
async def raw_redis(server: RedisServer, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A stream and a group; XACK of what each read has brought."""
    redis, topic = import_module("redis.asyncio"), name("raw")
    async with (
        redis.Redis(port=server.port, protocol=3) as reading,
        redis.Redis(port=server.port, protocol=3) as client,
    ):
        await client.xgroup_create(topic, "bench", "0", mkstream=True)

        async def read() -> None:
            while True:
                answer = await reading.xreadgroup("bench", "raw", {topic: ">"}, count=100, block=1000)
                for page in answer.values():
                    for _, fields in page[0]:
                        arrivals.came(fields[b"value"])
                    await client.xack(topic, "bench", *(entry for entry, _ in page[0]))

        async with _running(read()):
            yield lambda value: client.xadd(topic, {"value": value})
        await client.delete(topic)


@asynccontextmanager
async def raw_nats(server: NATSServer, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A stream and a push consumer, which is the quickest that the client has; each message is acknowledged."""
    client, topic = await import_module("nats").connect(server.url), name("raw")
    stream = client.jetstream()
    await stream.add_stream(name=topic, subjects=[topic])

    async def handle(msg: Any) -> None:
        arrivals.came(msg.data)
        await msg.ack()

    await stream.subscribe(topic, cb=handle, manual_ack=True)
    try:
        yield lambda value: stream.publish(topic, value)
    finally:
        await stream.delete_stream(topic)
        await client.close()


@asynccontextmanager
async def raw_rabbitmq(server: RabbitMQServer, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A durable queue, persistent messages, confirms, and an acknowledgement for each message."""
    connection, channel = await connected(server)
    loop, topic, count = asyncio.get_running_loop(), name("raw"), 0
    persistent = import_module("pika").BasicProperties(delivery_mode=2)
    waiting: dict[int, asyncio.Future[None]] = {}

    def on_confirm(frame: Any) -> None:
        last, several = frame.method.delivery_tag, frame.method.multiple
        for tag in [tag for tag in waiting if tag <= last] if several else [last]:
            waiting.pop(tag).set_result(None)

    def on_message(_: Any, method: Any, __: Any, body: bytes) -> None:
        arrivals.came(body)
        channel.basic_ack(method.delivery_tag)

    def send(value: bytes) -> asyncio.Future[None]:
        nonlocal count
        count += 1
        waiting[count] = confirmed = loop.create_future()
        channel.basic_publish("", topic, value, persistent)
        return confirmed

    declared = loop.create_future()
    channel.queue_declare(
        topic, durable=True, arguments={"x-queue-type": "quorum"}, callback=declared.set_result
    )
    await declared
    selected = loop.create_future()
    channel.confirm_delivery(on_confirm, callback=selected.set_result)
    await selected
    channel.basic_qos(prefetch_count=1000)
    channel.basic_consume(topic, on_message)
    try:
        yield send
    finally:
        await leave(connection)


@asynccontextmanager
async def raw_kafka(server: KafkaServer, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A thread that consumes, and one that polls for delivery reports; nothing lingers."""
    confluent, topic = import_module("confluent_kafka"), name("raw")
    loop, ended = asyncio.get_running_loop(), threading.Event()
    bootstrap = {"bootstrap.servers": server.brokers}
    producer = confluent.Producer({**bootstrap, "enable.idempotence": True, "linger.ms": 0})
    admin = import_module("confluent_kafka.admin")
    for made in admin.AdminClient(bootstrap).create_topics([admin.NewTopic(topic, 1)]).values():
        await asyncio.to_thread(made.result)

    def confirm() -> None:
        while not ended.is_set():
            producer.poll(0.1)

    def consume() -> None:
        consumer = confluent.Consumer(
            {
                **bootstrap,
                "group.id": topic,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        consumer.subscribe([topic])
        while not ended.is_set():
            batch = consumer.consume(500, 0.001)
            if batch:
                loop.call_soon_threadsafe(_each, arrivals, [record.value() for record in batch])
                consumer.commit(asynchronous=True)
        consumer.close()

    def send(value: bytes) -> asyncio.Future[None]:
        confirmed: asyncio.Future[None] = loop.create_future()
        producer.produce(
            topic, value, on_delivery=lambda *_: loop.call_soon_threadsafe(confirmed.set_result, None)
        )
        return confirmed

    threads = [asyncio.to_thread(work) for work in (confirm, consume)]
    working = asyncio.gather(*threads)
    try:
        yield send
    finally:
        ended.set()
        await working


def _each(arrivals: Arrivals, values: list[bytes]) -> None:
    for value in values:
        arrivals.came(value)


@asynccontextmanager
async def _running(work: Any) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


# --- side by side

BROKERS: Final[dict[str, tuple[Any, Side]]] = {
    "kafka": (KafkaServer, raw_kafka),
    "rabbitmq": (RabbitMQServer, raw_rabbitmq),
    "nats": (NATSServer, raw_nats),
    "redis": (RedisServer, raw_redis),
}


def rows_of(broker: str, what: str, rounds: list[tuple[Taken, Taken]]) -> list[Result]:
    """Ours against the client's: by how much the median is above, and how many times the 99th percentile it is."""
    above = statistics.median(our.median - raw.median for our, raw in rounds)
    times = statistics.median(our.high / raw.high for our, raw in rounds)
    middle = [statistics.median(each.median for each in side) for side in zip(*rounds, strict=True)]
    high = [statistics.median(each.high for each in side) for side in zip(*rounds, strict=True)]
    notes = f"ms, medians of {len(rounds)} rounds"
    return [
        Result(
            f"{broker}: latency from publish to handler, {what}, median", f"{above:+.2f} ms against raw",
            f"at most +{ABOVE:g}", above <= ABOVE, f"{middle[0]:.2f} and {middle[1]:.2f} {notes}",
        ),
        Result(
            f"{broker}: latency from publish to handler, {what}, 99th percentile", f"{times:.2f} of raw",
            f"at most {TAIL:g}", times <= TAIL, f"{high[0]:.2f} and {high[1]:.2f} {notes}",
        ),
    ]  # fmt: skip


async def measured(broker: str, kind: Any, raw: Side) -> list[Result]:
    """Several rounds on one server; a row that says why where there can be none."""
    try:
        async with running(kind) as server:
            rounds = [(await round_of(ours, server), await round_of(raw, server)) for _ in range(RUNS)]
    except (ModuleNotFoundError, ServerUnavailable) as reason:
        return not_measured(broker, reason)
    alone = [(our[0], their[0]) for our, their in rounds]
    rated = [(our[1], their[1]) for our, their in rounds]
    return [
        *rows_of(broker, "one at a time", alone),
        *rows_of(broker, f"{RATE:,} a second", rated),
    ]


async def run() -> list[Result]:
    """Each broker that has a real server."""
    rows: list[Result] = []
    for broker, (kind, raw) in BROKERS.items():
        rows += await measured(broker, kind, raw)
    return rows
