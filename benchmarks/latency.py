"""How long a message takes from its publish to its handler, ours beside the client alone: one at a time, and many a second."""

import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from benchmarks import clients, services
from benchmarks.clients import GROUP, Arrivals, Send
from benchmarks.kafka import FastKafka
from benchmarks.result import Result
from benchmarks.rounds import name, not_measured, running
from things_kit import Broker, Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.process import ServerProcess
from things_kit.testing.servers.pubsub import PubSubServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.redis import RedisServer
from things_kit.testing.servers.servicebus import ServiceBusServer
from things_kit.testing.servers.sqs import SQSServer

ALONE: Final = 300
"""Messages one at a time, in one round."""

FEW: Final = 100
"""As many where each takes some hundredths of a second."""

RATE: Final = 1_000
SECONDS: Final = 1
WARM: Final = 50
"""Messages that do not count, before each."""

RUNS: Final = 3
ABOVE: Final = 0.3
"""Milliseconds that our median may be above the client's."""

TAIL: Final = 2.0
"""Times the client's 99th percentile that ours may be."""

PATIENCE: Final = 60.0
"""Seconds that one side of a round may take."""

VALUE: Final = b"x" * 200

Side: TypeAlias = Callable[[Any, Arrivals], AbstractAsyncContextManager[Send]]
"""A consumer that tells the arrivals of each value, and what sends to it."""


def stamped() -> bytes:
    """A value that says that it is sent now."""
    return b"%020.9f" % time.perf_counter() + VALUE[20:]


async def one_at_a_time(send: Send, arrivals: Arrivals, count: int) -> list[float]:
    """Seconds that each took, where the next is sent once one was confirmed and handled."""
    taken: list[float] = []
    for _ in range(count):
        arrivals.expect(1)
        await send(stamped())
        await arrivals.done.wait()
        taken += arrivals.taken
    return taken


async def at_a_rate(send: Send, arrivals: Arrivals, rate: int) -> list[float]:
    """Seconds that each took, of as many as are sent in so many seconds, whether others were confirmed or not."""

    async def sent() -> None:
        await send(stamped())

    arrivals.expect(WARM + rate * SECONDS)
    async with asyncio.TaskGroup() as tasks:
        begun = time.perf_counter()
        for number in range(arrivals.expected):
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            tasks.create_task(sent())
    await arrivals.done.wait()
    return arrivals.taken[WARM:]


class Taken(msgspec.Struct, frozen=True):
    """Milliseconds of one round."""

    median: float
    high: float


def summary(seconds: list[float]) -> Taken:
    """Half of the messages, and 99 of 100, took no longer."""
    cuts = statistics.quantiles(seconds, n=100)
    return Taken(1e3 * cuts[49], 1e3 * cuts[98])


class Kind(msgspec.Struct, frozen=True):
    """A broker that latency is measured on."""

    opened: Callable[[], AbstractAsyncContextManager[Any]]
    """What the raw side is handed."""

    raw: Side
    url: Callable[[Any], str] = lambda server: str(server.url)
    rate: int = RATE
    """Messages a second: fewer where the client alone comes to no thousand on a stand-in."""

    alone: int = ALONE
    notes: str = ""


async def round_of(kind: Kind, side: Side, server: Any) -> tuple[Taken, Taken]:
    """One at a time, and many a second, once it is warm."""
    arrivals = Arrivals()
    async with asyncio.timeout(PATIENCE), side(server, arrivals) as send:
        await one_at_a_time(send, arrivals, WARM)
        gc.collect()
        alone = await one_at_a_time(send, arrivals, kind.alone)
        gc.collect()
        return summary(alone), summary(await at_a_rate(send, arrivals, kind.rate))


@asynccontextmanager
async def ours(url: str, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A producer and a consumer as they are by default."""
    async with connect(url) as broker:
        topic = name("latency")
        await broker.declare(topic, [GROUP])

        async def handle(message: Message) -> None:
            arrivals.came(message.value)

        async with broker.consumer(topic, group=GROUP, handler=handle, concurrency=8):
            yield _publishing(broker, topic)
        await broker.remove(topic)


def _publishing(broker: Broker, topic: str) -> Send:
    producer = broker.producer()
    return lambda value: producer.publish(Message(topic, value))


@asynccontextmanager
async def folder() -> AsyncIterator[Path]:
    """On the disk where this is run from: what is in memory elsewhere has no latency."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as path:
        yield Path(path)


def server(kind: type[ServerProcess]) -> Callable[[], AbstractAsyncContextManager[Any]]:
    """A server of this benchmark's own."""
    return lambda: running(kind)


STANDS_IN: Final = "; a stand-in for the service bounds both"

BROKERS: Final = {
    "memory": Kind(folder, clients.memory, lambda _: "memory://", notes="; raw is an asyncio.Queue"),
    "sqlite": Kind(
        folder, clients.sqlite, lambda path: f"sqlite:///{path}/latency.db", notes="; both in one process"
    ),
    "postgres": Kind(server(PostgresServer), clients.postgres),
    "kafka": Kind(server(FastKafka), clients.kafka),
    "rabbitmq": Kind(server(RabbitMQServer), clients.rabbitmq),
    "nats": Kind(server(NATSServer), clients.nats),
    "redis": Kind(server(RedisServer), clients.redis),
    "sqs": Kind(server(SQSServer), services.sqs, rate=100, alone=FEW, notes=STANDS_IN),
    "pubsub": Kind(server(PubSubServer), services.pubsub, notes=STANDS_IN),
    "servicebus": Kind(server(ServiceBusServer), services.servicebus, rate=100, alone=FEW, notes=STANDS_IN),
}


def rows_of(broker: str, what: str, rounds: list[tuple[Taken, Taken]], more: str) -> list[Result]:
    """Ours against the client's: by how much the median is above, and how many times the 99th percentile it is."""
    above = statistics.median(our.median - raw.median for our, raw in rounds)
    times = statistics.median(our.high / raw.high for our, raw in rounds)
    middle = [statistics.median(each.median for each in side) for side in zip(*rounds, strict=True)]
    high = [statistics.median(each.high for each in side) for side in zip(*rounds, strict=True)]
    notes = f"ms, medians of {len(rounds)} rounds{more}"
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


async def measured(broker: str, kind: Kind) -> list[Result]:
    """Several rounds on one server; a row that says why where there can be none."""
    rounds = []
    try:
        async with kind.opened() as opened:
            for _ in range(RUNS):
                our = await round_of(kind, ours, kind.url(opened))
                rounds.append((our, await round_of(kind, kind.raw, opened)))
    except (ModuleNotFoundError, ServerUnavailable) as reason:
        return not_measured(broker, reason)
    except TimeoutError:
        return [Result(f"{broker}: latency", "not measured", "", False, f"not done in {PATIENCE:g} s")]
    alone = [(our[0], their[0]) for our, their in rounds]
    rated = [(our[1], their[1]) for our, their in rounds]
    return [
        *rows_of(broker, "one at a time", alone, kind.notes),
        *rows_of(broker, f"{kind.rate:,} a second", rated, kind.notes),
    ]


async def run(*chosen: str) -> list[Result]:
    """The brokers whose names are given, or all."""
    rows: list[Result] = []
    for broker in [known for known in BROKERS if known in chosen] or BROKERS:
        found = await measured(broker, BROKERS[broker])
        for row in found:
            print(f"{row.name}: {row.figure} ({row.notes})", file=sys.stderr, flush=True)
        rows += found
    return rows
