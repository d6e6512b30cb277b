"""The event loop of uvloop beside asyncio's own, with which everything else here is measured."""

import asyncio
from collections.abc import Callable
from importlib import import_module

from benchmarks.common import consume, messages
from benchmarks.redis import publish
from benchmarks.result import Result, rate
from benchmarks.rounds import against, name, not_measured, ratio, running
from things_kit import Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.redis import RedisServer

COUNT = 200_000
AT_ONCE = 1000
RUNS = 5

Loop = Callable[[], asyncio.AbstractEventLoop]


async def round_of(url: str) -> tuple[float, float, float]:
    """Messages a second: published by batches, by many publishes at once, and consumed."""
    topic, many = name("loop"), name("many")
    async with connect(url) as broker:
        published = await rate(COUNT, lambda: publish(broker, messages(COUNT, topic)))
        consumed = await consume(broker, COUNT, topic=topic, group=name("bench"))
        producer = broker.producer()

        async def publisher(mine: list[Message]) -> None:
            for message in mine:
                await producer.publish(message)

        rows = messages(20 * AT_ONCE, many)

        async def at_once() -> None:
            await asyncio.gather(*(publisher(rows[start::AT_ONCE]) for start in range(AT_ONCE)))

        singly = await rate(len(rows), at_once)
        for each in (topic, many):
            await broker.remove(each)
    return published, singly, consumed.rate


def on(loop: Loop, url: str) -> tuple[float, float, float]:
    """A round on a loop of its own, in the thread of the caller."""
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(round_of(url))


async def run() -> list[Result]:
    """Several rounds of each on one server; a row that says why where there can be none."""
    try:
        uvloop = import_module("uvloop")
        async with running(RedisServer) as server:
            rounds = [
                (
                    await asyncio.to_thread(on, uvloop.new_event_loop, server.url),
                    await asyncio.to_thread(on, asyncio.new_event_loop, server.url),
                )
                for _ in range(RUNS)
            ]
    except (ModuleNotFoundError, ServerUnavailable) as reason:
        return not_measured("uvloop", reason)
    rows = []
    for index, what in enumerate(("publish_batch", f"{AT_ONCE:,} concurrent publish calls", "consume")):
        theirs = [own[index] for _, own in rounds]
        ours = [other[index] for other, _ in rounds]
        rows.append(
            Result(
                f"redis on uvloop: {what}, against asyncio's own loop",
                f"{ratio(ours, theirs):.2f} times", "", True, against(ours, theirs),
            )
        )  # fmt: skip
    return rows
