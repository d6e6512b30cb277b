"""Redis is killed while it is at work: what was confirmed is handled."""

import asyncio
from collections import Counter
from uuid import uuid4

import pytest

pytest.importorskip("redis")

from things_kit import Message, connect
from things_kit.testing.conformance.processes import WorkerProcess
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own
from things_kit.testing.servers.redis import RedisServer

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
