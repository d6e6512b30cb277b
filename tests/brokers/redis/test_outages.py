"""Redis is killed while it is at work: what was confirmed is handled."""

import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("redis")

from redis.asyncio import Redis

from things_kit import Message, connect
from things_kit.brokers.redis.driver import RedisDriver
from things_kit.engine.url import BrokerURL
from things_kit.testing.conformance.processes import WorkerProcess
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.redis import RedisServer

redis = shared(RedisServer, "redis")
own_redis = own(RedisServer)

COUNT = 3000


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid4().hex}"


async def kill_and_restart(server: RedisServer) -> None:
    """By SIGKILL: what was answered is in the append-only file."""
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


async def test_a_batch_in_whose_middle_the_server_is_killed_is_there_as_a_whole(
    own_redis: RedisServer, topic: str
) -> None:
    """Large enough for several round trips; what had no answer is sent again, and may be there twice."""
    messages = [Message(topic, bytes(20_000), key=b"k", id=str(number)) for number in range(COUNT)]
    async with connect(own_redis.url + "?timeout=2") as broker:
        await broker.declare(topic, groups=["g"])
        publishing = asyncio.create_task(broker.producer().publish_batch(messages))
        length = 0

        async def begun() -> bool:
            nonlocal length
            length = int((await asyncio.to_thread(own_redis.ask, "XLEN", topic)).removeprefix(":"))
            return length > 0

        await eventually(begun, 15)
        assert length < COUNT
        assert not publishing.done()
        await kill_and_restart(own_redis)
        await publishing
        recorder = Recorder()
        async with broker.consumer(topic, group="g", handler=recorder, concurrency=8):
            await eventually(lambda: len({m.id for m in recorder.done}) == COUNT, 30)
    first = list(dict.fromkeys(int(m.id or "") for m in recorder.done))
    assert first == list(range(COUNT))


async def test_a_killed_server_and_a_killed_process_of_a_group_lose_nothing(
    own_redis: RedisServer, topic: str
) -> None:
    url = own_redis.url + "?timeout=1&lease=1"
    ids = [str(number) for number in range(2000)]
    async with connect(url) as broker:
        producer = broker.producer()
        workers = [await WorkerProcess.start(url, topic, "g", delay=0.001) for _ in range(2)]
        try:
            await producer.publish_batch(
                [Message(topic, b"x", key=number.encode(), id=number) for number in ids[:1000]]
            )
            await eventually(lambda: all(worker.history.ids("done") for worker in workers), 20)
            await kill_and_restart(own_redis)
            await producer.publish_batch(
                [Message(topic, b"x", key=number.encode(), id=number) for number in ids[1000:]]
            )
            await workers[0].kill()

            def handled() -> set[str]:
                return {number for worker in workers for number in worker.history.ids("done")}

            await eventually(lambda: handled() >= set(ids), 40, "all are handled")

            async def settled() -> bool:
                return await broker.lag(topic, "g") == 0

            await eventually(settled, 20)
        finally:
            for worker in workers:
                await worker.kill()
    twice = Counter(number for worker in workers for number in worker.history.ids("done"))
    assert sum(count - 1 for count in twice.values()) <= 400, "no more than what they had in flight, twice"


@pytest.mark.parametrize("how", ["deleted", "declared again", "group destroyed", "flushed"])
async def test_a_consumer_and_a_producer_go_on_after_what_an_operator_deletes(
    own_redis: RedisServer, topic: str, how: str
) -> None:
    """What is confirmed once the deletion took effect is handled, once or more often."""
    seen, confirmed = Recorder(), []
    deleted, ends = asyncio.Event(), asyncio.Event()
    async with connect(own_redis.url) as broker, connect(own_redis.url) as operator:

        async def publish() -> None:
            number = 0
            while not ends.is_set():
                value, after = b"%d" % number, deleted.is_set()
                await broker.producer().publish(Message(topic, value))
                if after:
                    confirmed.append(value)
                number += 1

        async with broker.consumer(topic, group="g", handler=seen, concurrency=4, dead_letter=None):
            publishing = asyncio.create_task(publish())
            await seen.until_done(20, 10)
            if how == "flushed":
                own_redis.ask("FLUSHALL")
            elif how == "group destroyed":
                own_redis.ask("XGROUP", "DESTROY", topic, "g")
            else:
                await operator.remove(topic)
            if how == "declared again":
                await operator.declare(topic, groups=["g"])
            deleted.set()
            await eventually(lambda: publishing.done() or len(confirmed) > 50, 20)
            ends.set()
            await publishing
            await eventually(lambda: set(confirmed) <= set(seen.values), 20)


STRANGE = {
    "half a character": (b"value", b"x", b"tk-packed", b'{"headers":{"a":"\\ud800"}}'),
    "a time in no calendar": (b"value", b"x", b"tk-time", b"99999-01-01T00:00:00+00:00", b"tk-id", b"1"),
    "a time without a zone": (b"value", b"x", b"tk-time", b"2026-01-01", b"tk-id", b"1"),
    "a time that leaves the calendar": (b"value", b"x", b"tk-time", b"0001-01-01T00:00:00+14:00", b"tk-id", b"1"),
    "no names": (b"", b"", b"\xff\x00", b"\r\n"),
    "headers that are numbers": (b"value", b"x", b"tk-packed", b'{"headers":{"a":1}}'),
}  # fmt: skip


@pytest.mark.parametrize("fields", STRANGE.values(), ids=STRANGE)
async def test_an_entry_that_nobody_can_read_does_not_stop_its_group(
    redis: RedisServer, topic: str, fields: tuple[bytes, ...]
) -> None:
    seen = Recorder()
    async with Redis(port=redis.port) as client, connect(redis.url) as broker:
        command: Any = client.execute_command
        await command("XADD", topic, "*", *fields)
        async with broker.consumer(topic, group="g", handler=seen, dead_letter=None):
            await broker.producer().publish(Message(topic, b"after"))
            await seen.until_done(2, 10)
        await broker.remove(topic)
    assert seen.values[1] == b"after"


async def test_what_the_server_has_closed_while_nobody_used_it_is_not_used_again(
    own_redis: RedisServer, topic: str
) -> None:
    """As Redis does by its `timeout`, and balancers do; whoever got such a connection lost what it was about to settle."""
    driver = RedisDriver.from_url(BrokerURL.parse(own_redis.url))
    await driver.open()
    await driver.declare(topic, ["g"])

    async def used() -> list[int | None]:
        return await asyncio.gather(*(driver.lag(topic, "g") for _ in range(8)))

    await used()
    await asyncio.to_thread(own_redis.ask, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await used() == [0] * 8
    await driver.close()
