"""Each broker's client alone, publishing and consuming each message as soon as it can: what latency is measured against.

All confirm what they publish, and acknowledge what they have handled. Where a client would have a round trip or a transaction for each message,
what comes while one is under way goes together with the next, as ours does; else it comes to no 1,000 messages a second.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeAlias

from benchmarks.rabbitmq import connected, leave
from benchmarks.rounds import name
from things_kit import connect
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.redis import RedisServer

PAGE: Final = 100
"""Messages that are read at once, where a client asks for so many."""

GROUP: Final = "bench"

Send: TypeAlias = Callable[[bytes], Awaitable[object]]
"""Publishes one message, and returns when it is confirmed."""


class Arrivals:
    """How long each message took, by what its value says of when it was sent."""

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


@asynccontextmanager
async def meanwhile(work: Any) -> AsyncIterator[None]:
    """Reads meanwhile. A reader that failed says so once it is ended; some clients let themselves be cancelled at the second try only."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.1)
        with suppress(asyncio.CancelledError):
            task.result()


class Together:
    """Sends at once; what comes while something is being sent goes with the next."""

    def __init__(self, send: Callable[[list[bytes]], Awaitable[object]]) -> None:
        self._send_all = send
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def send(self, value: bytes) -> None:
        """Returns when it is confirmed."""
        confirmed = asyncio.get_running_loop().create_future()
        self._waiting.append((value, confirmed))
        if self._sending is None:
            self._sending = asyncio.create_task(self._work())
        await confirmed

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._send_all([value for value, _ in batch])
            except Exception as error:  # noqa: BLE001 - whoever sent it is told
                for _, confirmed in batch:
                    confirmed.set_exception(error)
            else:
                for _, confirmed in batch:
                    confirmed.set_result(None)
        self._sending = None


# --- without a server


@asynccontextmanager
async def memory(_: Any, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A queue of asyncio's, which keeps nothing of what was taken."""
    queue: asyncio.Queue[bytes] = asyncio.Queue()

    async def read() -> None:
        while True:
            arrivals.came(await queue.get())

    async with meanwhile(read()):
        yield queue.put


@asynccontextmanager
async def sqlite(folder: Path, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A transaction for what waits, and one for each page that was read; the reader is told of it within the process."""
    path, loop, news = folder / f"{name('raw')}.db", asyncio.get_running_loop(), asyncio.Event()
    with ThreadPoolExecutor(1) as writing, ThreadPoolExecutor(1) as reading:
        writer, reader = [await loop.run_in_executor(each, _opened, path) for each in (writing, reading)]

        async def send(values: list[bytes]) -> None:
            await loop.run_in_executor(writing, _insert, writer, values)
            news.set()

        def read(last: int) -> list[tuple[int, bytes]]:
            return reader.execute(
                "SELECT seq, value FROM message WHERE seq > ? ORDER BY seq", [last]
            ).fetchall()

        async def consume() -> None:
            last = 0
            while True:
                await news.wait()
                news.clear()
                for seq, value in await loop.run_in_executor(reading, read, last):
                    arrivals.came(value)
                    last = seq
                await loop.run_in_executor(
                    reading, reader.execute, "DELETE FROM message WHERE seq <= ?", [last]
                )

        async with meanwhile(consume()):
            yield Together(send).send
        for executor, connection in ((writing, writer), (reading, reader)):
            await loop.run_in_executor(executor, connection.close)


def _insert(writer: sqlite3.Connection, values: list[bytes]) -> None:
    writer.execute("BEGIN IMMEDIATE")
    writer.executemany("INSERT INTO message (value) VALUES (?)", [(value,) for value in values])
    writer.execute("COMMIT")


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS message (seq INTEGER PRIMARY KEY AUTOINCREMENT, value BLOB)"
    )
    return connection


# --- with a server


@asynccontextmanager
async def redis(server: RedisServer, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A stream and a group, a connection that reads and others; XACK of what each read has brought."""
    package, topic = import_module("redis.asyncio"), name("raw")
    async with (
        package.Redis(port=server.port, protocol=3) as reading,
        package.Redis(port=server.port, protocol=3) as client,
    ):
        await client.xgroup_create(topic, GROUP, "0", mkstream=True)

        async def read() -> None:
            while True:
                answer = await reading.xreadgroup(GROUP, "raw", {topic: ">"}, count=PAGE, block=1000)
                for page in answer.values():
                    for _, fields in page[0]:
                        arrivals.came(fields[b"value"])
                    await client.xack(topic, GROUP, *(entry for entry, _ in page[0]))

        async def send(values: list[bytes]) -> None:
            async with client.pipeline(transaction=False) as pipeline:
                for value in values:
                    pipeline.xadd(topic, {"value": value})
                await pipeline.execute()

        async with meanwhile(read()):
            yield Together(send).send
        await client.delete(topic)


@asynccontextmanager
async def postgres(server: PostgresServer, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A table and NOTIFY; what is read is deleted once it is handled, in one transaction."""
    asyncpg, table = import_module("asyncpg"), name("raw").replace("-", "_")
    reading, news = await asyncpg.connect(server.url), asyncio.Event()
    await reading.execute(f"CREATE TABLE {table} (seq bigserial PRIMARY KEY, value bytea)")
    await reading.add_listener(table, lambda *_: news.set())
    taking = (
        f"DELETE FROM {table} WHERE seq IN "
        f"(SELECT seq FROM {table} ORDER BY seq LIMIT {PAGE} FOR UPDATE SKIP LOCKED) RETURNING seq, value"
    )

    async def read() -> None:
        while True:
            await news.wait()
            news.clear()
            async with reading.transaction():
                rows = await reading.fetch(taking)
                for _, value in sorted(rows):
                    arrivals.came(value)
            if len(rows) == PAGE:
                news.set()

    sending = f"WITH sent AS (INSERT INTO {table} (value) SELECT unnest($1::bytea[])) SELECT pg_notify('{table}', '')"
    writing = await asyncpg.connect(server.url)
    async with meanwhile(read()):
        yield Together(lambda values: writing.execute(sending, values)).send
    await writing.close()
    await reading.close()


@asynccontextmanager
async def nats(server: NATSServer, arrivals: Arrivals) -> AsyncIterator[Send]:
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
async def rabbitmq(server: RabbitMQServer, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A quorum queue, persistent messages, confirms, and an acknowledgement for each message."""
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
        channel.basic_publish("", topic, value, persistent, mandatory=True)
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
async def kafka(server: KafkaServer, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A thread that consumes, and one that polls for delivery reports; nothing lingers. Commits once a second, as ours do."""
    package, topic = import_module("confluent_kafka"), name("raw")
    loop, ended = asyncio.get_running_loop(), threading.Event()
    bootstrap = {"bootstrap.servers": server.brokers}
    producer = package.Producer({**bootstrap, "enable.idempotence": True, "linger.ms": 0})
    consumer = package.Consumer(
        {**bootstrap, "group.id": topic, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    )
    async with connect(server.url) as broker:
        await broker.declare(topic)
    consumer.subscribe([topic])

    def confirm() -> None:
        while not ended.is_set():
            producer.poll(0.1)

    def each(values: list[bytes]) -> None:
        for value in values:
            arrivals.came(value)

    def consume() -> None:
        committed = time.monotonic()
        while not ended.is_set():
            # It returns only when it has as many as it was asked for, or the time is over: so one, and what else is there
            first = consumer.poll(0.1)
            if first is not None:
                batch = [first, *consumer.consume(500, 0)]
                loop.call_soon_threadsafe(each, [record.value() for record in batch])
                if time.monotonic() > committed + 1.0:
                    committed = time.monotonic()
                    consumer.commit(asynchronous=True)
        consumer.close()

    def send(value: bytes) -> asyncio.Future[None]:
        confirmed: asyncio.Future[None] = loop.create_future()
        producer.produce(
            topic, value, on_delivery=lambda *_: loop.call_soon_threadsafe(confirmed.set_result, None)
        )
        return confirmed

    working = asyncio.gather(asyncio.to_thread(confirm), asyncio.to_thread(consume))
    try:
        yield send
    finally:
        ended.set()
        await working
