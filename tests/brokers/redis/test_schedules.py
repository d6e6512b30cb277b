"""What comes later on Redis: beside the stream until it is due, on a real server."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("redis")

from redis.asyncio import Redis

from tests.brokers.redis.test_receiver import received
from things_kit import ConfigError, Message, PublishError, connect
from things_kit.brokers.redis.driver import RedisDriver
from things_kit.brokers.redis.keys import topic_keys
from things_kit.engine.collected import Collecting, collect
from things_kit.engine.driver import Scheduled, Subscription
from things_kit.engine.url import BrokerURL
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.redis import RedisServer

redis = shared(RedisServer, "redis")
own_redis = own(RedisServer)


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid4().hex}"


@pytest.fixture
async def driver(redis: RedisServer, topic: str) -> AsyncIterator[RedisDriver]:
    """A driver with a topic and a group `g`, which looks for nothing by itself."""
    driver = await opened(redis.url)
    await driver.declare(topic, ["g"])
    yield driver
    await driver.close()


async def opened(url: str) -> RedisDriver:
    driver = RedisDriver.from_url(BrokerURL.parse(url))
    await driver.open()
    return driver


async def join(driver: RedisDriver, topic: str, **details: Any) -> Collecting:
    return await collect(driver, Subscription(topic=topic, group="g", create=False, **details))


def message(topic: str, value: bytes) -> Message:
    return Message(topic, value, b"k", {"a": "b"}, timestamp=datetime.now(UTC), id=value.decode())


def at(topic: str, value: bytes, seconds: float, schedule_id: str | None = None) -> Scheduled:
    return Scheduled(message(topic, value), datetime.now(UTC) + timedelta(seconds=seconds), schedule_id)


async def schedule(driver: RedisDriver, *entries: Scheduled) -> None:
    assert not any(await driver.schedule(entries))


async def schedule_and_forget(redis: RedisServer, *entries: Scheduled) -> None:
    """By a process that is gone when it is due."""
    gone = await opened(redis.url)
    await schedule(gone, *entries)
    await gone.close()


async def until_due(driver: RedisDriver, topic: str, count: int) -> None:
    """Asking for the lag adds nothing to the stream."""

    async def due() -> bool:
        return await driver.lag(topic, "g") == count

    await eventually(due, 5)


async def values(receiver: Collecting, count: int) -> list[bytes]:
    return [delivery.message.value for delivery in await received(receiver, count, wait=0.5)]


async def kept(topic: str, redis: RedisServer) -> int:
    """How many keys there are beside the stream."""
    async with Redis(port=redis.port) as client:
        return int(await client.exists(*topic_keys(topic)[1:]))


async def test_what_is_scheduled_outlives_a_killed_server(own_redis: RedisServer, topic: str) -> None:
    async with connect(own_redis.url + "?timeout=1") as broker:
        await broker.declare(topic, ["g"])
        producer = broker.producer()
        await producer.publish(Message(topic, b"comes"), after=0.5, schedule_id="a")
        await producer.publish(Message(topic, b"does not"), after=60, schedule_id="b")
        await asyncio.to_thread(own_redis.kill)
        await asyncio.to_thread(own_redis.start)
        assert [each.schedule_id for each in await broker.schedules(topic)][-1] == "b"
        assert await broker.cancel(topic, "b")
        recorder = Recorder()
        async with broker.consumer(topic, group="g", handler=recorder):
            assert [m.value for m in await recorder.until_done(1, 10)] == [b"comes"]


@pytest.mark.parametrize("ephemeral", [False, True])
async def test_who_receives_sees_that_it_is_due_though_who_scheduled_is_gone(
    redis: RedisServer, driver: RedisDriver, topic: str, ephemeral: bool
) -> None:
    receiver = await join(driver, topic, ephemeral=ephemeral)
    assert not await receiver.receive(1, 0)  # it has looked, and knows of nothing to come
    await schedule_and_forget(redis, at(topic, b"v", 0.2))
    assert await values(receiver, 1) == [b"v"]
    await receiver.close()


async def test_a_receiver_that_waits_at_a_quiet_server_is_not_late(
    own_redis: RedisServer, topic: str
) -> None:
    """A call that blocks ends by the server's own clock, which is slow there: up to a second late."""
    own_redis.ask("CONFIG", "SET", "hz", "1")
    driver = await opened(own_redis.url)
    await driver.declare(topic, ["g"])
    receiver = await join(driver, topic)
    late = []
    for number in range(10):
        entry = at(topic, b"%d" % number, 0.02)
        await schedule(driver, entry)
        await received(receiver, 1)
        late.append((datetime.now(UTC) - entry.due).total_seconds())
    assert min(late) >= 0
    assert sorted(late)[7] < 0.2
    await receiver.close()
    await driver.close()


async def test_more_than_a_look_takes_comes_in_order_and_is_counted_at_once(
    redis: RedisServer, driver: RedisDriver, topic: str
) -> None:
    due, count = datetime.now(UTC) + timedelta(seconds=0.5), 2500
    await schedule_and_forget(redis, *(Scheduled(message(topic, b"%d" % n), due) for n in range(count)))
    await until_due(driver, topic, count)
    receiver = await join(driver, topic)
    assert await values(receiver, count) == [b"%d" % n for n in range(count)]
    assert await driver.lag(topic, "g") == count
    assert await kept(topic, redis) == 0
    await receiver.close()


async def test_a_batch_comes_behind_what_is_due_in_each_of_its_topics(
    redis: RedisServer, driver: RedisDriver, topic: str
) -> None:
    topics = [topic, f"{topic}-refunds"]
    for each in topics:
        await driver.declare(each, ["g"])
        await schedule_and_forget(redis, at(each, b"due", 0.05))
    for each in topics:
        await until_due(driver, each, 1)
    await driver.send([message(each, b"%d" % number) for number in range(2) for each in topics])
    for each in topics:
        receiver = await join(driver, each)
        assert await values(receiver, 3) == [b"due", b"0", b"1"]
        await receiver.close()


async def test_a_name_whose_message_is_due_already_is_free_again(
    redis: RedisServer, driver: RedisDriver, topic: str
) -> None:
    """Nobody has looked at the stream since: it comes all the same, and is not replaced or cancelled."""
    await schedule_and_forget(redis, at(topic, b"first", 0.05, "a"))
    await until_due(driver, topic, 1)
    assert not await driver.cancel(topic, "a")
    await schedule(driver, at(topic, b"second", 60, "a"))
    assert [each.message.value for each in await driver.upcoming(topic, 9)] == [b"second"]
    receiver = await join(driver, topic)
    assert await values(receiver, 1) == [b"first"]
    assert await driver.cancel(topic, "a")
    await receiver.close()


async def test_a_group_that_begins_at_the_latest_does_not_get_what_was_due_before(
    redis: RedisServer, driver: RedisDriver, topic: str
) -> None:
    await schedule_and_forget(redis, at(topic, b"before", 0.05))
    await until_due(driver, topic, 1)
    late = await collect(driver, Subscription(topic=topic, group="late", start="latest"))
    follower = await collect(driver, Subscription(topic=topic, group="follower", ephemeral=True))
    await driver.send([message(topic, b"after")])
    for receiver in (late, follower):
        assert await values(receiver, 1) == [b"after"]
        await receiver.close()


async def test_nothing_is_left_beside_the_stream(redis: RedisServer, driver: RedisDriver, topic: str) -> None:
    await schedule(driver, at(topic, b"1", 60, "a"), at(topic, b"2", 50, "a"), at(topic, b"3", 40))
    assert [each.message.value for each in await driver.upcoming(topic, 9)] == [b"3", b"2"]
    assert await kept(topic, redis) == 2
    await driver.remove(topic)
    assert await kept(topic, redis) == 0
    await driver.declare(topic, ["g"])
    assert await driver.upcoming(topic, 9) == []
    await schedule(driver, at(topic, b"1", 60, "a"))
    assert await driver.cancel(topic, "a")
    assert await kept(topic, redis) == 0


async def test_what_is_due_waits_for_a_stream_that_somebody_has_deleted(
    redis: RedisServer, driver: RedisDriver, topic: str
) -> None:
    await schedule_and_forget(redis, at(topic, b"v", 0.05))
    await until_due(driver, topic, 1)
    async with Redis(port=redis.port) as client:
        await client.delete(topic)
    await driver.declare(topic, ["g"])
    receiver = await join(driver, topic)
    assert await values(receiver, 1) == [b"v"]
    await receiver.close()


async def test_a_server_without_memory_hands_out_what_is_there_though_more_is_due(
    own_redis: RedisServer, topic: str
) -> None:
    driver = await opened(own_redis.url)
    await driver.declare(topic, ["g"])
    await driver.send([message(topic, b"there")])
    await schedule(driver, at(topic, b"due", 0.05))
    own_redis.ask("CONFIG", "SET", "maxmemory", "1")
    await until_due(driver, topic, 2)
    [refused] = await driver.schedule([at(topic, b"more", 60)])
    assert isinstance(refused, PublishError)
    receiver = await join(driver, topic)
    assert await values(receiver, 1) == [b"there"]
    assert not await receiver.receive(1, 0)
    own_redis.ask("CONFIG", "SET", "maxmemory", "0")
    assert await values(receiver, 1) == [b"due"]
    await receiver.close()
    await driver.close()


async def test_a_message_of_more_fields_than_a_script_can_add_is_refused(
    driver: RedisDriver, topic: str
) -> None:
    many = message(topic, b"v").replace(headers={str(number): "" for number in range(3600)})
    refused, fine = await driver.schedule(
        [Scheduled(many, datetime.now(UTC) + timedelta(seconds=60)), at(topic, b"v", 60)]
    )
    assert isinstance(refused, PublishError)
    assert "too many headers" in str(refused)
    assert fine is None
    assert await driver.send([many]) == [None]


async def test_a_message_that_too_few_replicas_keep_is_not_confirmed(redis: RedisServer, topic: str) -> None:
    driver = await opened(redis.url + "?wait_replicas=1&wait_timeout=0.01")
    await driver.declare(topic, [])
    [refused] = await driver.schedule([at(topic, b"v", 60)])
    assert isinstance(refused, PublishError)
    await driver.close()


@pytest.mark.parametrize("prefix", ["tk-due:", "tk-scheduled:"])
async def test_a_topic_is_not_called_like_what_is_beside_a_stream(driver: RedisDriver, prefix: str) -> None:
    with pytest.raises(ConfigError, match="keeps for itself"):
        await driver.declare(f"{prefix}6:orders", [])
