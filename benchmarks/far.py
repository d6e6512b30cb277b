"""Brokers in another zone or region: what is left of the speed where every byte travels 5 or 50 ms, each way."""

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeAlias

from benchmarks.common import messages
from benchmarks.distance import far
from benchmarks.result import Result
from benchmarks.rounds import name, running
from things_kit import Broker, Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.process import free_ports
from things_kit.testing.servers.pubsub import PROJECT, PubSubServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.redis import RedisServer
from things_kit.testing.servers.servicebus import ServiceBusServer

DELAYS: Final = (0.0, 0.005, 0.05)
"""Seconds each way; the first is what the others are compared to, through the same relay."""

WINDOW: Final = 1000
"""`max_in_flight` as it is by default."""

COUNT: Final = 20_000
WARM: Final = 2_000
"""Handled before it counts: the window widens with what a handler takes."""

OF_CONSUMING: Final = 0.8
OF_PUBLISHING: Final = 0.7
PATIENCE: Final = 120.0

Far: TypeAlias = Callable[[float], AbstractAsyncContextManager[str]]
"""The URL of a broker that is so many seconds away."""


class Handled:
    """Counts, and knows when the first that counts and the last came."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self._seen = 0
        self._began = self._ended = 0.0

    async def handle(self, message: Message) -> None:
        self._seen += 1
        if self._seen == WARM:
            self._began = time.perf_counter()
        elif self._seen == WARM + COUNT:
            self._ended = time.perf_counter()
            self.done.set()

    @property
    def rate(self) -> float:
        """Messages a second between the two."""
        return COUNT / (self._ended - self._began)


async def published(broker: Broker) -> float:
    """Messages a second of one large batch of small ones, once the producer is warm."""
    topic, producer = name("far"), broker.producer()
    await broker.declare(topic, [name("group")])
    small = [Message(topic, b"x" * 20, key=b"key-%d" % (n % 1000)) for n in range(COUNT)]
    await producer.publish_batch(small[:100])
    gc.collect()
    began = time.perf_counter()
    await producer.publish_batch(small)
    ended = time.perf_counter()
    await broker.remove(topic)
    return COUNT / (ended - began)


async def consumed(broker: Broker) -> float:
    """Messages a second from the middle of a run, in order by key."""
    topic, group, handled = name("far"), name("group"), Handled()
    await broker.declare(topic, [group])
    rows = messages(COUNT + WARM, topic)
    for start in range(0, len(rows), 5_000):
        await broker.producer().publish_batch(rows[start : start + 5_000])
    gc.collect()
    async with broker.consumer(topic, group=group, handler=handled.handle, concurrency=8):
        await handled.done.wait()
    await broker.remove(topic)
    return handled.rate


def rows_of(broker: str, consuming: list[float], publishing: list[float]) -> list[Result]:
    """What is left of both at each distance."""
    rows = []
    for delay, rate, sent in zip(DELAYS[1:], consuming[1:], publishing[1:], strict=True):
        away = f"{delay * 1e3:g} ms each way"
        reachable = min(consuming[0], WINDOW / (2 * delay))
        share, kept = rate / reachable, sent / publishing[0]
        rows += [
            Result(
                f"{broker}: consume, {away}", f"{share:.2f} of what can be", f"at least {OF_CONSUMING:g}",
                share >= OF_CONSUMING,
                f"{rate:,.0f} messages/s; beside it {consuming[0]:,.0f}, by {WINDOW:,} a round trip {WINDOW / (2 * delay):,.0f}",
            ),
            Result(
                f"{broker}: publish_batch of {COUNT:,} small ones, {away}", f"{kept:.2f} of beside it",
                f"at least {OF_PUBLISHING:g}", kept >= OF_PUBLISHING,
                f"{sent:,.0f} messages/s; beside it {publishing[0]:,.0f}",
            ),
        ]  # fmt: skip
    return rows


@asynccontextmanager
async def redis() -> AsyncIterator[Far]:
    async with running(RedisServer) as server:
        yield _at(server.port, "redis://127.0.0.1:{}/0")


@asynccontextmanager
async def nats() -> AsyncIterator[Far]:
    async with running(NATSServer) as server:
        yield _at(server.ports[0], "nats://127.0.0.1:{}")


@asynccontextmanager
async def rabbitmq() -> AsyncIterator[Far]:
    async with running(RabbitMQServer) as server:
        yield _at(server.ports[0], "amqp://guest:guest@127.0.0.1:{}/")


@asynccontextmanager
async def postgres() -> AsyncIterator[Far]:
    async with running(PostgresServer) as server:
        yield _at(server.ports[0], server.url.replace(f":{server.ports[0]}", ":{}"))


@asynccontextmanager
async def pubsub() -> AsyncIterator[Far]:
    async with running(PubSubServer) as server:
        yield _at(server.ports[0], f"pubsub://{PROJECT}?endpoint=127.0.0.1:{{}}")


@asynccontextmanager
async def servicebus() -> AsyncIterator[Far]:
    async with running(ServiceBusServer) as server:
        yield _at(server.ports[0], server.url.replace(f":{server.ports[0]}", ":{}", 1))


@asynccontextmanager
async def kafka() -> AsyncIterator[Far]:
    """It tells its clients where it is: one port for the way to it, whatever that takes."""
    plain, controller, secure, away = free_ports(4)
    server = KafkaServer(
        ports=[plain, controller, secure],
        properties={
            "listeners": f"PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{away}",
        },
    )
    try:
        async with far(plain, 0.0, away):
            await asyncio.to_thread(server.start)
        yield _at(plain, "kafka://127.0.0.1:{}", away)
    finally:
        await asyncio.to_thread(server.terminate)


def _at(port: int, url: str, listen: int = 0) -> Far:
    @asynccontextmanager
    async def opened(delay: float) -> AsyncIterator[str]:
        async with far(port, delay, listen) as away:
            yield url.format(away)

    return opened


BROKERS: Final = {
    "kafka": kafka,
    "rabbitmq": rabbitmq,
    "nats": nats,
    "redis": redis,
    "postgres": postgres,
    "pubsub": pubsub,
    "servicebus": servicebus,
}


async def measured(at: Far, delay: float, what: Callable[[Broker], Awaitable[float]]) -> float:
    """One figure, in the patience there is; 0 where it takes longer."""
    async with at(delay) as url, connect(url) as broker:
        try:
            async with asyncio.timeout(PATIENCE):
                return await what(broker)
        except TimeoutError:
            return 0.0


async def run(*chosen: str) -> list[Result]:
    """All rows of the brokers whose names are given, or of all."""
    results: list[Result] = []
    for each in [known for known in BROKERS if known in chosen] or BROKERS:
        try:
            async with BROKERS[each]() as at:
                publishing = [await measured(at, delay, published) for delay in DELAYS]
                consuming = [await measured(at, delay, consumed) for delay in DELAYS]
        except (ModuleNotFoundError, ServerUnavailable) as reason:
            results.append(Result(each, "not measured", "", True, str(reason)))
            continue
        rows = rows_of(each, consuming, publishing)
        for row in rows:
            print(f"{row.name}: {row.figure} ({row.notes})", file=sys.stderr, flush=True)
        results += rows
    return results
