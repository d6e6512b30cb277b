"""The driver for PostgreSQL against pgqueuer, procrastinate and pgmq, on one real server, with the same durability."""

import asyncio
import json
import statistics
import time
from importlib import import_module
from typing import Any
from unittest import mock

from benchmarks.common import consume, messages
from benchmarks.result import Result, Stopwatch, rate
from benchmarks.rounds import against, name, not_measured, ratio, running
from things_kit import Broker, Message, connect
from things_kit.brokers.postgres.connections import Connections
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.postgres import PostgresServer

COUNT = 100_000
CHUNK = 10_000
PEER_COUNT = 20_000
PEER_BATCH = 500
"""Of 10, 100, 500 and 1,000 the size with which pgqueuer was fastest."""

SLOW_COUNT = 2_000
RUNS = 3
WAITING = 3_000_000
PAIRS = 5
IDLE = 5.0
ROUNDS = 400


async def publish(broker: Broker, rows: list[Message]) -> None:
    """In batches, one after the other."""
    producer = broker.producer()
    for start in range(0, len(rows), CHUNK):
        await producer.publish_batch(rows[start : start + CHUNK])


async def ours(broker: Broker, count: int, keys: int = 1000) -> tuple[float, float]:
    """Messages a second, published and consumed."""
    topic = name("bench")
    await broker.declare(topic, groups=["bench"])
    rows = messages(count, topic, keys)
    published = await rate(count, lambda: publish(broker, rows))
    consumed = await consume(broker, count, topic=topic)
    await broker.remove(topic)
    return published, consumed.rate


# --- others


async def pgqueuer(url: str) -> tuple[float, float]:
    """The same as jobs of one entrypoint, enqueued in as large batches."""
    asyncpg, package = import_module("asyncpg"), import_module("pgqueuer")
    drivers, queries = import_module("pgqueuer.db"), import_module("pgqueuer.queries")
    connection, other = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        jobs = queries.Queries(drivers.AsyncpgDriver(connection))
        if await connection.fetchval("SELECT to_regclass('pgqueuer') IS NULL"):
            await jobs.install()

        async def enqueue() -> None:
            for _ in range(PEER_COUNT // CHUNK):
                await jobs.enqueue(["bench"] * CHUNK, [b"x" * 200] * CHUNK, [0] * CHUNK)

        published = await rate(PEER_COUNT, enqueue)
        worker = package.PgQueuer(drivers.AsyncpgDriver(other))
        watch, seen = Stopwatch(), 0

        async def handle(_: Any) -> None:
            nonlocal seen
            watch.first()
            seen += 1
            if seen == PEER_COUNT:
                worker.shutdown.set()

        worker.entrypoint("bench")(handle)

        await worker.run(batch_size=PEER_BATCH)
        return published, watch.consumed(PEER_COUNT).rate
    finally:
        await connection.close()
        await other.close()


async def procrastinate(url: str) -> tuple[float, float]:
    """The same as jobs of one task, deferred in batches, and deleted when they succeeded."""
    package = import_module("procrastinate")
    app = package.App(connector=package.PsycopgConnector(conninfo=url))
    watch, done, seen = Stopwatch(), asyncio.Event(), 0

    async def handle(payload: str) -> None:
        nonlocal seen
        assert payload
        watch.first()
        seen += 1
        if seen == SLOW_COUNT:
            done.set()

    task = app.task(queue="bench", name="bench")(handle)

    async with app.open_async():
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        jobs = [{"payload": "x" * 200}] * SLOW_COUNT
        published = await rate(SLOW_COUNT, lambda: task.batch_defer_async(*jobs))
        worker = asyncio.create_task(
            app.run_worker_async(concurrency=8, install_signal_handlers=False, delete_jobs="successful")
        )
        await done.wait()
        consumed = watch.consumed(SLOW_COUNT)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    return published, consumed.rate


async def pgmq(url: str) -> tuple[float, float]:
    """The same by its SQL, read and deleted in as large batches: no keys, no order, and nobody who hands messages to handlers."""
    return await by_pgmq(url, PEER_COUNT, "read")


async def pgmq_in_order(url: str) -> tuple[float, float]:
    """The same with keys and their order, as we have them: its FIFO groups, with their index."""
    return await by_pgmq(url, SLOW_COUNT, "read_grouped")


async def by_pgmq(url: str, count: int, reads: str) -> tuple[float, float]:
    """Messages a second that its SQL sends, and that it reads by this function and deletes."""
    connection = await import_module("asyncpg").connect(url)
    try:
        if await connection.fetchval("SELECT to_regnamespace('pgmq') IS NULL"):
            await connection.execute(import_module("pgmq").get_embedded_install_sql())
        queue = name("bench").replace("-", "_")
        await connection.fetch("SELECT pgmq.create($1)", queue)
        if reads == "read_grouped":
            await connection.fetch("SELECT pgmq.create_fifo_index($1)", queue)
        body = json.dumps({"value": "x" * 200})
        size = min(count, CHUNK)
        keys = [json.dumps({"x-pgmq-group": f"key-{number % 1000}"}) for number in range(size)]

        async def send() -> None:
            for _ in range(count // size):
                await connection.fetch(
                    "SELECT pgmq.send_batch($1, $2::jsonb[], $3::jsonb[])",
                    queue,
                    [body] * size,
                    None if reads == "read" else keys,
                )

        async def read() -> None:
            left = count
            while left:
                rows = await connection.fetch(
                    f"SELECT msg_id, message FROM pgmq.{reads}($1, 60, $2)",
                    queue,
                    PEER_BATCH,
                )
                read_ids = [row[0] for row in rows]
                left -= len(await connection.fetch("SELECT pgmq.delete($1, $2::bigint[])", queue, read_ids))

        return await rate(count, send), await rate(count, read)
    finally:
        await connection.close()


async def against_others(broker: Broker, url: str) -> list[Result]:
    """Rounds side by side with each of those that are installed."""
    results = []
    for peer in (pgqueuer, procrastinate, pgmq, pgmq_in_order):
        mine, theirs = [], []
        try:
            for _ in range(RUNS):
                theirs.append(await peer(url))
                mine.append(await ours(broker, COUNT))
        except ModuleNotFoundError as missing:
            results.append(
                Result(
                    f"postgres: against {peer.__name__}",
                    "not measured",
                    "",
                    True,
                    f"{missing.name} is not installed",
                )
            )
            continue
        for place, what in enumerate(("publish_batch", "consume at least once, key order, concurrency 8")):
            our, their = [pair[place] for pair in mine], [pair[place] for pair in theirs]
            times = ratio(our, their)
            results.append(
                Result(
                    f"postgres: {what}, against {peer.__name__}",
                    f"{times:.1f} times",
                    "at least 3",
                    times >= 3,
                    against(our, their),
                )
            )
    return results


# --- alone


async def beside_a_transaction(broker: Broker, url: str) -> Result:
    """How much slower a round is while a transaction that has written stays open."""
    connection = await import_module("asyncpg").connect(url)
    calm, disturbed = [], []
    try:
        for _ in range(RUNS):
            calm.append((await ours(broker, COUNT))[1])
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("INSERT INTO things_kit.message (topic, value) VALUES ('other', '')")
            disturbed.append((await ours(broker, COUNT))[1])
            await transaction.rollback()
    finally:
        await connection.close()
    part = ratio(disturbed, calm)
    return Result(
        "postgres: consume while another transaction is open for the whole round",
        f"{part:.2f} of the rate without",
        "at least 0.8",
        part >= 0.8,
        against(disturbed, calm),
    )


async def growth(broker: Broker) -> Result:
    """Consume from two topics with 10,000 keys and 50 groups in turn, of which one has 30 times as much waiting."""
    few, many = name("bench"), name("bench")
    for topic, count in ((few, COUNT), (many, WAITING)):
        await broker.declare(topic, groups=[f"g{number}" for number in range(50)])
        for _ in range(count // COUNT):
            await publish(broker, messages(COUNT, topic, 10_000))
    rates: dict[str, list[float]] = {few: [], many: []}
    for number in range(PAIRS):
        for topic in (few, many) if number % 2 else (many, few):
            rates[topic].append(await some(broker, topic, f"g{number}", COUNT))
    for topic in (few, many):
        await broker.remove(topic)
    part = ratio(rates[many], rates[few])
    return Result(
        "postgres: consume with 3,000,000 waiting, 10,000 keys, 50 groups, against 100,000 waiting",
        f"{part:.2f} of the rate",
        "at least 0.8",
        part >= 0.8,
        against(rates[many], rates[few]),
    )


async def some(broker: Broker, topic: str, group: str, count: int) -> float:
    """Messages a second of the first `count` that a group handles."""
    seen, done = 0, asyncio.Event()

    async def handle(_: Message) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            done.set()

    async with broker.consumer(topic, group=group, handler=handle, concurrency=8):
        begun = time.perf_counter()
        await done.wait()
        return count / (time.perf_counter() - begun)


async def idle(broker: Broker) -> Result:
    """What a consumer costs that has nothing to do."""
    calls = 0
    use = Connections.use

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return use(*arguments, **options)

    topic = name("bench")
    async with broker.consumer(topic, group="bench", handler=lambda _: asyncio.sleep(0), concurrency=8):
        await asyncio.sleep(1.0)
        with mock.patch.object(Connections, "use", counted):
            busy = time.process_time()
            await asyncio.sleep(IDLE)
            busy = time.process_time() - busy
    queries = calls / IDLE
    return Result(
        "postgres: a consumer that has nothing to do",
        f"{queries:.1f} transactions a second",
        "at most 5",
        queries <= 5,
        f"{100 * busy / IDLE:.1f} % of a core in its process",
    )


async def latency(broker: Broker) -> Result:
    """From publish to handler, each message published alone, with 5 ms between them."""
    topic, took, done = name("bench"), [], asyncio.Event()

    async def handle(message: Message) -> None:
        took.append(time.perf_counter() - float(message.value))
        if len(took) == ROUNDS:
            done.set()

    async with broker.consumer(topic, group="bench", handler=handle, concurrency=8):
        producer = broker.producer()
        for _ in range(ROUNDS):
            await producer.publish(Message(topic, str(time.perf_counter()).encode()))
            await asyncio.sleep(0.005)
        await done.wait()
    middle = statistics.median(took) * 1000
    worst = statistics.quantiles(took, n=100)[98] * 1000
    return Result(
        "postgres: latency from publish to handler, 5 ms between two messages",
        f"{middle:.1f} ms median",
        "under 20 ms",
        middle < 20,
        f"99th percentile {worst:.1f} ms",
    )


async def run() -> list[Result]:
    """All on one server; a row that says why where there can be none."""
    try:
        import_module("asyncpg")
        async with running(PostgresServer) as server, connect(server.url) as broker:
            return [
                *await against_others(broker, server.url),
                await beside_a_transaction(broker, server.url),
                await latency(broker),
                await idle(broker),
                await growth(broker),
            ]
    except (ModuleNotFoundError, ServerUnavailable) as reason:
        return not_measured("postgres", reason)
