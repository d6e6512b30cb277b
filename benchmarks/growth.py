"""What becomes of the speed as a load grows: by what waits, keys, bytes, topics, groups, messages in back-off, members."""

import asyncio
import gc
import logging
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.kafka import FastKafka
from benchmarks.result import Result
from benchmarks.rounds import name, running
from things_kit import Broker, Message, PublishError, RetryPolicy, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.redis import RedisServer

HALF: Final = 0.5
"""What is left of the speed of the smallest, at least, where nothing but a number has grown."""

CHUNK: Final = 5_000
PATIENCE: Final = 30.0
"""Seconds that one count may take."""

ROUNDS: Final = 2
"""The best of so many counts: the machine's other work only ever slows one down."""

IDLE: Final = 3.0
"""Seconds for which idle consumers are watched."""

AGAIN: Final = RetryPolicy(attempts=100_000, first=1.0, factor=1.0)
"""What fails does so every second."""

COUNTS: Final = {"memory": 200_000, "sqlite": 60_000, "postgres": 20_000, "redis": 40_000, "kafka": 100_000}
"""How many messages each figure is of, by broker: some tenths of a second, and seconds with what has grown."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a figure is measured with."""

    count: int
    waiting: int = 0
    keys: int = 1000
    size: int = 200
    topics: int = 1
    groups: int = 1
    failing: int = 0


AXES: Final[Mapping[str, tuple[int, ...]]] = {
    "waiting": (2_000, 20_000, 200_000),
    "keys": (10, 1_000, 100_000),
    "topics": (1, 10, 100),
    "groups": (1, 10, 100),
    "failing": (0, 200, 2_000, 5_000),
    "size": (100, 10_000, 1_000_000),
}

WORDS: Final[Mapping[str, str]] = {
    "waiting": "messages that wait",
    "keys": "keys",
    "topics": "topics of one consumer each",
    "groups": "groups of one consumer each",
    "failing": "messages in back-off, each of its own key, that fail every second",
    "size": "bytes a message",
}


class Counting:
    """A handler that counts, once `begun` is set; what has a header fails.

    `there` is set when each consumer has had a message: some brokers let one join only after its start.
    """

    def __init__(self, expected: int, failing: int, consumers: int = 1) -> None:
        self.begun = asyncio.Event()
        self.there = asyncio.Event()
        self.done = asyncio.Event()
        self.failed = asyncio.Event()
        self._left = expected
        self._failing = failing
        self._absent = consumers
        if not failing:
            self.failed.set()

    def handler(self) -> Callable[[Message], Awaitable[None]]:
        """Of one consumer."""
        absent = True

        async def handle(message: Message) -> None:
            nonlocal absent
            if absent:
                absent = False
                self._absent -= 1
                if not self._absent:
                    self.there.set()
            await self.handle(message)

        return handle

    async def handle(self, message: Message) -> None:
        if message.headers:
            self._failing -= 1
            if not self._failing:
                self.failed.set()
            raise ConnectionError
        if not self.begun.is_set():
            await self.begun.wait()
        self._left -= 1
        if not self._left:
            self.done.set()


def rows(load: Load, topics: list[str], number: int) -> list[Message]:
    """So many messages, spread evenly over topics and keys."""
    value, keys = b"x" * load.size, load.keys
    return [
        Message(topics[n % len(topics)], value, key=b"key-%d" % (n // len(topics) % keys))
        for n in range(number)
    ]


async def publish(broker: Broker, messages: list[Message], size: int = 0) -> None:
    """In batches, one after the other."""
    chunk = max(1, min(CHUNK, 20_000_000 // max(1, size)))
    producer = broker.producer()
    for start in range(0, len(messages), chunk):
        await producer.publish_batch(messages[start : start + chunk])


async def consumed(broker: Broker, load: Load) -> float:
    """Deliveries a second, from when all consumers have had a message until all is handled."""
    topics = [name("growth") for _ in range(load.topics)]
    groups = [name("group") for _ in range(load.groups)]
    await asyncio.gather(*(broker.declare(topic, groups) for topic in topics))
    failing = [
        Message(topics[0], b"", key=b"failing-%d" % n, headers={"failing": "yes"})
        for n in range(load.failing)
    ]
    await publish(broker, failing)
    counting = Counting(load.count * load.groups, load.failing, len(topics) * len(groups))
    if not load.failing:
        await publish(broker, rows(load, topics, load.waiting or load.count), load.size)
    async with AsyncExitStack() as stack:
        consumers = [
            broker.consumer(
                topic,
                group=group,
                handler=counting.handler(),
                retry=AGAIN,
                concurrency=8,
                drain_timeout=1.0,
                max_in_flight=1000 + load.failing,
            )
            for group in groups
            for topic in topics
        ]
        # Together: each topic more that a member of a Kafka group has is a rebalance, and one takes a second
        await asyncio.gather(*map(stack.enter_async_context, consumers))
        async with asyncio.timeout(PATIENCE):
            await counting.there.wait()
            await counting.failed.wait()
            if load.failing:
                await publish(broker, rows(load, topics, load.count), load.size)
            gc.collect()
            began = time.perf_counter()
            counting.begun.set()
            await counting.done.wait()
            ended = time.perf_counter()
    await asyncio.gather(*(broker.remove(topic) for topic in topics))
    return load.count * load.groups / (ended - began)


def load_of(axis: str, size: int, count: int) -> Load:
    """What one figure of an axis is measured with: always about as many deliveries."""
    if axis == "waiting":
        return Load(count=min(count, size), waiting=size)
    if axis == "groups":
        return Load(count=max(100, count // size), groups=size)
    if axis == "size":
        return Load(count=max(100, min(count, 50_000_000 // size)), size=size)
    return msgspec.structs.replace(Load(count=count), **{axis: size})


async def grown(broker_name: str, broker: Broker, axis: str) -> Result:
    """A row: the rate with the least of it, and what is left of that with more."""
    figures: list[tuple[int, float]] = []
    lacking = ""
    for size in AXES[axis]:
        load = load_of(axis, size, COUNTS[broker_name])
        try:
            figures.append((size, max([await consumed(broker, load) for _ in range(ROUNDS)])))
        except TimeoutError:
            lacking += f"; {size:,}: not done within {PATIENCE:g} s"
        except PublishError as error:
            lacking += f"; {size:,}: {error}"
    worst = 0.0 if lacking else min(rate for _, rate in figures) / figures[0][1]
    notes = "; ".join(f"{size:,}: {rate:,.0f}/s" for size, rate in figures) + lacking
    by_bytes = axis == "size"
    return Result(
        f"{broker_name}: {WORDS[axis]}",
        f"{worst:.2f} of the first",
        "" if by_bytes else f"at least {HALF:g}",
        by_bytes or worst >= HALF,
        notes,
    )


async def idle(broker_name: str, broker: Broker) -> Result:
    """A row: how much of one core consumers take that have nothing to do."""
    notes: list[str] = []
    for number in (1, 10, 30):
        topics = [name("idle") for _ in range(number)]
        async with AsyncExitStack() as stack:
            consumers = [
                broker.consumer(topic, group="idle", handler=Counting(1, 0).handle) for topic in topics
            ]
            await asyncio.gather(*map(stack.enter_async_context, consumers))
            began = time.process_time()
            await asyncio.sleep(IDLE)
            share = (time.process_time() - began) / IDLE
        notes.append(f"{number}: {share:.1%}")
        for topic in topics:
            await broker.remove(topic)
    return Result(
        f"{broker_name}: idle consumers, each of a topic of its own",
        f"{share:.1%} of a core",
        "at most 10%",
        share <= 0.1,
        "; ".join(notes),
    )


@asynccontextmanager
async def memory() -> AsyncIterator[str]:
    yield "memory://"


@asynccontextmanager
async def sqlite() -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        yield f"sqlite:///{folder}/growth.db"


@asynccontextmanager
async def postgres() -> AsyncIterator[str]:
    async with running(PostgresServer) as server:
        yield server.url


@asynccontextmanager
async def redis() -> AsyncIterator[str]:
    async with running(RedisServer) as server:
        yield server.url


@asynccontextmanager
async def kafka() -> AsyncIterator[str]:
    """A topic has one partition, so that it is topics which grow."""
    async with running(FastKafka) as server:
        yield f"{server.url}?partitions=1"


BROKERS: Final = {
    "memory": memory,
    "sqlite": sqlite,
    "postgres": postgres,
    "redis": redis,
    "kafka": kafka,
}


async def run(*chosen: str) -> list[Result]:
    """All rows of the brokers and axes whose names are given, or of all."""
    logging.disable(logging.WARNING)  # thousands of messages fail as they are meant to
    brokers = [each for each in BROKERS if each in chosen] or [*BROKERS]
    every = (*AXES, "idle")
    axes = [each for each in every if each in chosen] or every
    results: list[Result] = []
    for each in brokers:
        try:
            async with BROKERS[each]() as url, connect(url) as broker:
                for axis in axes:
                    row = await (idle(each, broker) if axis == "idle" else grown(each, broker, axis))
                    print(f"{row.name}: {row.figure} ({row.notes})", file=sys.stderr, flush=True)
                    results.append(row)
        except (ModuleNotFoundError, ServerUnavailable) as reason:
            results.append(Result(each, "not measured", "", True, str(reason)))
    return results
