"""What all benchmarks send and handle."""

import asyncio
from collections.abc import Awaitable, Callable

from benchmarks.result import Consumed, Stopwatch
from things_kit import Message
from things_kit.engine.broker import Broker


def messages(count: int, topic: str = "bench", keys: int = 1000) -> list[Message]:
    """Messages of 200 bytes with one header, over so many keys."""
    return [
        Message(topic, b"x" * 200, key=b"key-%d" % (i % keys), headers={"type": "bench"})
        for i in range(count)
    ]


def counting_handler(
    count: int, first: Callable[[], None] = lambda: None
) -> tuple[Callable[[Message], Awaitable[None]], asyncio.Event]:
    """A handler that does nothing but count, and the event that it has seen `count` messages; `first` is told of one."""
    seen, done = 0, asyncio.Event()

    async def handle(message: Message) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            first()
        if seen == count:
            done.set()

    return handle, done


async def consume(broker: Broker, count: int, *, topic: str = "bench", group: str = "bench") -> Consumed:
    """Consume so many messages in key order with concurrency 8, until all are acknowledged and the consumer has left."""
    watch = Stopwatch()
    handle, done = counting_handler(count, watch.first)
    async with broker.consumer(topic, group=group, handler=handle, concurrency=8):
        await done.wait()
    consumed = watch.consumed(count)
    assert not await broker.lag(topic, group)
    return consumed
