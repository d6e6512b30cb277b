"""How long one request takes, beside request and reply by hand: both are kept by the broker, confirmed and acknowledged."""

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, TypeAlias

from benchmarks.result import Result
from benchmarks.rounds import name, not_measured, running
from things_kit import Broker, Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.redis import RedisServer

COUNT = 1000
RUNS = 5
BOUND = 1.5
VALUE = b"x" * 200

Ask: TypeAlias = Callable[[], Awaitable[object]]
"""Asks once, and returns when the reply is there."""


async def median(ask: Ask) -> float:
    """Seconds that one of many requests takes, one after the other."""
    for _ in range(50):
        await ask()
    gc.collect()
    took: list[float] = []
    for _ in range(COUNT):
        begun = time.perf_counter()
        await ask()
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


@asynccontextmanager
async def ours(broker: Broker) -> AsyncIterator[Ask]:
    """`broker.request`, and a consumer that answers."""
    topic = name("asked")

    async def answer(message: Message) -> bytes:
        return message.value

    async with broker.consumer(topic, group="bench", handler=answer):
        yield lambda: broker.request(Message(topic, VALUE), timeout=10)


# --- by hand, on Redis Streams


@asynccontextmanager
async def by_hand_on_redis(server: RedisServer) -> AsyncIterator[Ask]:
    """A stream for requests, one for replies, and a group that reads each; both sides read all the time, and acknowledge."""
    redis = import_module("redis.asyncio")
    asked, replies, number = name("raw-asked"), name("raw-replies"), 0
    waiting: dict[bytes, asyncio.Future[bytes]] = {}
    ended = asyncio.Event()

    def client() -> Any:
        return redis.Redis(port=server.port, protocol=3)

    async with client() as reading, client() as inbox, client() as sending, client() as answering:

        async def answer() -> None:
            async for entry, fields in _entries(reading, asked, ended):
                reply = {"value": fields[b"value"], "correlation-id": fields[b"correlation-id"]}
                await answering.xadd(fields[b"reply-to"], reply)
                await answering.xack(asked, "bench", entry)

        async def receive() -> None:
            async for entry, fields in _entries(inbox, replies, ended):
                waiting.pop(fields[b"correlation-id"]).set_result(fields[b"value"])
                await sending.xack(replies, "bench", entry)

        async def ask() -> bytes:
            nonlocal number
            number += 1
            correlation_id = b"%d" % number
            reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            waiting[correlation_id] = reply
            await sending.xadd(asked, {"value": VALUE, "reply-to": replies, "correlation-id": correlation_id})
            async with asyncio.timeout(10):
                return await reply

        for stream in (asked, replies):
            await sending.xgroup_create(stream, "bench", "0", mkstream=True)
        async with _running(ended, answer, receive):
            yield ask
        await sending.delete(asked, replies)


async def _entries(
    client: Any, stream: str, ended: asyncio.Event
) -> AsyncIterator[tuple[bytes, dict[bytes, bytes]]]:
    while not ended.is_set():
        answer = await client.xreadgroup("bench", "raw", {stream: ">"}, count=100, block=1000)
        for page in answer.values():
            for entry, fields in page[0]:
                yield entry, fields


# --- by hand, on NATS JetStream


@asynccontextmanager
async def by_hand_on_nats(server: NATSServer) -> AsyncIterator[Ask]:
    """The same with a stream and a pull consumer each."""
    nats = import_module("nats")
    asked, replies, number = name("raw-asked"), name("raw-replies"), 0
    waiting: dict[str, asyncio.Future[bytes]] = {}
    ended = asyncio.Event()
    client = await nats.connect(server.url)
    stream = client.jetstream()
    for topic in (asked, replies):
        await stream.add_stream(name=topic, subjects=[topic])
    reading = await stream.pull_subscribe(asked, durable="bench")
    inbox = await stream.pull_subscribe(replies, durable="bench")

    async def answer() -> None:
        async for msg in _messages(reading, nats, ended):
            said = {"correlation-id": msg.headers["correlation-id"]}
            await stream.publish(msg.headers["reply-to"], msg.data, headers=said)
            await msg.ack()

    async def receive() -> None:
        async for msg in _messages(inbox, nats, ended):
            waiting.pop(msg.headers["correlation-id"]).set_result(msg.data)
            await msg.ack()

    async def ask() -> bytes:
        nonlocal number
        number += 1
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiting[str(number)] = reply
        await stream.publish(asked, VALUE, headers={"reply-to": replies, "correlation-id": str(number)})
        async with asyncio.timeout(10):
            return await reply

    try:
        async with _running(ended, answer, receive):
            yield ask
    finally:
        for topic in (asked, replies):
            await stream.delete_stream(topic)
        await client.close()


async def _messages(subscription: Any, nats: Any, ended: asyncio.Event) -> AsyncIterator[Any]:
    while not ended.is_set():
        try:
            for msg in await subscription.fetch(1, timeout=1):
                yield msg
        except nats.errors.TimeoutError:
            pass


@asynccontextmanager
async def _running(ended: asyncio.Event, *works: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """They end when they look at the event again: the clients do not let themselves be cancelled."""
    tasks = [asyncio.ensure_future(work()) for work in works]
    try:
        yield
    finally:
        ended.set()
        await asyncio.gather(*tasks)


# --- side by side


async def measured(broker: str, kind: Any, by_hand: Callable[[Any], Any]) -> list[Result]:
    """Several rounds on one server; a row that says why where there can be none."""
    try:
        async with (
            running(kind) as server,
            connect(server.url) as connected,
            ours(connected) as ask,
            by_hand(server) as raw,
        ):
            rounds = [(await median(ask), await median(raw)) for _ in range(RUNS)]
    except (ModuleNotFoundError, ServerUnavailable) as reason:
        return not_measured(broker, reason)
    times = statistics.median(one / other for one, other in rounds)
    our, their = (statistics.median(each) * 1000 for each in zip(*rounds, strict=True))
    return [
        Result(
            f"{broker}: one request, from asking to its reply, against request and reply by hand with the same durability",
            f"{times:.2f} of by hand",
            f"at most {BOUND:g}",
            times <= BOUND,
            f"{our:.2f} and {their:.2f} ms at the 50th percentile of {COUNT:,}, medians of {RUNS} rounds",
        )
    ]


async def run() -> list[Result]:
    """On Redis and on NATS."""
    return [
        *await measured("redis", RedisServer, by_hand_on_redis),
        *await measured("nats", NATSServer, by_hand_on_nats),
    ]
