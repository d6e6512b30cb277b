"""`things-kit bench`: how fast a broker is from here, through the same code that an application runs."""

import asyncio
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from time import perf_counter
from typing import Annotated, Final
from uuid import uuid4

import msgspec
import typer
from rich.table import Table

from things_kit.brokers.connect import connect
from things_kit.cli.options import JsonFlag, Url
from things_kit.cli.printing import Terminal, as_json, say, terminal
from things_kit.cli.running import run
from things_kit.engine.broker import Broker
from things_kit.messaging.message import Message

GROUP: Final = "bench"
AT_ONCE: Final = 1000
"""How many `publish` calls are under way at once."""

SAMPLES: Final = 200
"""Messages of which each is published only when the one before was handled."""


class Figures(msgspec.Struct, frozen=True):
    """What was measured, in messages a second and in milliseconds.

    Attributes:
        publish_batch: Messages a second through one `publish_batch`.
        publish: The same through `publish` calls, 1,000 at once.
        consume: Messages a second through a handler that does nothing, each acknowledged.
        latency_median: From `publish` to the handler, one message at a time.
        latency_p99: The same, of the slowest in a hundred.
    """

    publish_batch: float
    publish: float
    consume: float
    latency_median: float
    latency_p99: float


def bench(
    url: Url,
    messages: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many to publish and consume.")
    ] = 10_000,
    size: Annotated[int, typer.Option(min=0, metavar="BYTES", help="Of each value.")] = 200,
    keys: Annotated[int, typer.Option(min=1, metavar="N", help="How many keys they have.")] = 1000,
    concurrency: Annotated[int, typer.Option(min=1, metavar="N", help="Handler calls at once.")] = 8,
    json: JsonFlag = False,
) -> None:
    """Measure the broker at URL: publishing, consuming in key order, and how long one message takes.

    It works on a topic of its own, which is removed at the end.
    """
    figures = run(lambda: _bench(url, _messages(messages, size, keys), concurrency))
    if json:
        say(as_json({"messages": messages, "size": size, **msgspec.structs.asdict(_rounded(figures))}))
    else:
        terminal().print(_table(figures, messages, size))


async def _bench(url: str, messages: list[Message], concurrency: int) -> Figures:
    console = terminal(stderr=True)
    async with connect(url) as broker, _topic(broker) as topic:
        messages = [message.replace(topic=topic) for message in messages]
        producer = broker.producer()
        with _status(console, "publishing a batch"):
            batch = await _rate(len(messages), lambda: producer.publish_batch(messages))
        with _status(console, "publishing side by side"):
            few = messages[:AT_ONCE]
            single = await _rate(len(few), lambda: asyncio.gather(*map(producer.publish, few)))
        with _status(console, "consuming"):
            count = len(messages) + len(few)
            consumed = await _rate(count, lambda: _consume(broker, topic, count, concurrency))
        with _status(console, "one at a time"):
            waits = await _latencies(broker, messages[0], min(SAMPLES, len(messages)))
    p99 = waits[min(len(waits) - 1, int(len(waits) * 0.99))]
    return Figures(batch, single, consumed, 1000 * statistics.median(waits), 1000 * p99)


@asynccontextmanager
async def _topic(broker: Broker) -> AsyncIterator[str]:
    """A topic of our own, which is gone in the end, also if we are interrupted."""
    topic = f"things-kit-bench-{uuid4().hex[:12]}"
    await broker.declare(topic, groups=[GROUP])
    try:
        yield topic
    finally:
        await broker.remove(topic)


async def _rate(count: int, work: Callable[[], Awaitable[object]]) -> float:
    began = perf_counter()
    await work()
    return count / (perf_counter() - began)


async def _consume(broker: Broker, topic: str, count: int, concurrency: int) -> None:
    """Handle so many; it returns when they are acknowledged, as the stop waits for that."""
    seen, done = 0, asyncio.Event()

    async def handle(message: Message) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            done.set()

    consumer = broker.consumer(topic, group=GROUP, handler=handle, concurrency=concurrency, dead_letter=None)
    async with consumer:
        await _unless_broken(done, consumer.wait())


async def _latencies(broker: Broker, message: Message, count: int) -> list[float]:
    """Seconds from publish to handler of so many messages, ascending."""
    arrived = asyncio.Event()
    at = 0.0

    async def handle(message: Message) -> None:
        nonlocal at
        at = perf_counter()
        arrived.set()

    waits: list[float] = []
    producer = broker.producer()
    consumer = broker.consumer(message.topic, group=GROUP, handler=handle, dead_letter=None)
    async with consumer:
        for _ in range(count):
            began = perf_counter()
            await producer.publish(message)
            await _unless_broken(arrived, consumer.wait())
            waits.append(at - began)
            arrived.clear()
    return sorted(waits)


async def _unless_broken(done: asyncio.Event, broken: Awaitable[None]) -> None:
    """Wait for the event; raises what broke the consumer before."""
    waiting = {asyncio.ensure_future(done.wait()), asyncio.ensure_future(broken)}
    try:
        finished, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in finished:
            task.result()
    finally:
        for task in waiting:
            task.cancel()


def _messages(count: int, size: int, keys: int) -> list[Message]:
    value = b"x" * size
    return [
        Message("bench", value, key=b"key-%d" % (n % keys), headers={"type": "bench"}) for n in range(count)
    ]


def _status(console: Terminal, what: str) -> AbstractContextManager[object]:
    return console.status(what) if console.is_terminal else nullcontext()


def _rounded(figures: Figures) -> Figures:
    return Figures(*(round(figure, 3) for figure in msgspec.structs.astuple(figures)))


def _table(figures: Figures, count: int, size: int) -> Table:
    table = Table(title=f"{count:,} messages of {size:,} bytes", title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_row("publish_batch", f"{figures.publish_batch:,.0f}/s")
    table.add_row(f"publish, {min(count, AT_ONCE):,} at once", f"{figures.publish:,.0f}/s")
    table.add_row("consume, in key order", f"{figures.consume:,.0f}/s")
    table.add_row("latency, median", f"{figures.latency_median:,.2f} ms")
    table.add_row("latency, 99 of 100", f"{figures.latency_p99:,.2f} ms")
    return table
