"""Commands that each message pays for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("redis")

from things_kit import Message
from things_kit.brokers.redis.driver import RedisDriver
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.url import BrokerURL
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.redis import RedisServer

redis = shared(RedisServer, "redis")
own_redis = own(RedisServer)


@pytest.fixture
async def driver(redis: RedisServer) -> AsyncIterator[RedisDriver]:
    driver = RedisDriver.from_url(BrokerURL.parse(redis.url))
    await driver.open()
    yield driver
    await driver.close()


async def test_a_publish_has_no_task_beside_its_own(driver: RedisDriver) -> None:
    """The client would have one write each command, before Python 3.12."""
    topic, tasks, loop = f"orders-{uuid4().hex}", list[Any](), asyncio.get_running_loop()
    await driver.declare(topic, ())
    await driver.send([Message(topic, b"first", id="1")])

    def counted(running: asyncio.AbstractEventLoop, work: Any, **named: Any) -> Any:
        tasks.append(work)
        return asyncio.Task(work, loop=running, **named)

    loop.set_task_factory(counted)
    try:
        results = await driver.send([Message(topic, b"%d" % number, id="2") for number in range(3)])
    finally:
        loop.set_task_factory(None)
    assert list(results) == [None] * 3
    assert tasks == []


async def insisted(call: Callable[[], Awaitable[Any]]) -> Any:
    """Call until the server is quick enough: this machine may not be."""
    while True:
        with contextlib.suppress(ConnectionLost):
            return await call()


async def test_a_server_that_does_not_answer_in_its_time_loses_its_connection(own_redis: RedisServer) -> None:
    """Its answer may come later, and must not be taken for that to the next command."""
    topic = f"orders-{uuid4().hex}"
    driver = RedisDriver.from_url(BrokerURL.parse(own_redis.url + "?timeout=0.2"))
    await insisted(driver.open)
    await insisted(lambda: driver.declare(topic, ["g"]))
    await insisted(lambda: driver.send([Message(topic, b"1", id="1")]))
    own_redis.pause()
    try:
        with pytest.raises(ConnectionLost):
            await driver.send([Message(topic, b"2", id="2")])
    finally:
        own_redis.resume()
    assert list(await insisted(lambda: driver.send([Message(topic, b"3", id="3")]))) == [None]
    await driver.close()
