"""Publishing for later, under virtual time."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from things_kit import ConfigError, Message, Topic, UnsupportedError, connect
from things_kit.middleware import compress
from things_kit.testing import MockHandler, MockProducer, StubDriver
from things_kit.testing.clock import run_virtual


def test_hours_pass_in_virtual_time() -> None:
    async def scenario() -> None:
        async with connect("memory://") as broker:
            handler = MockHandler()
            async with broker.consumer("orders", group="billing", handler=handler):
                producer = broker.producer()
                await producer.publish(Message("orders", b"two hours"), after=7200)
                await producer.publish(Message("orders", b"hour"), after=3600)
                assert await broker.lag("orders", group="billing") == 0
                messages = await handler.handled(2, timeout=10_000)
                assert [message.value for message in messages] == [b"hour", b"two hours"]

    run_virtual(scenario())


def test_after_is_a_duration_like_any_other() -> None:
    async def scenario() -> None:
        async with connect("memory://") as broker:
            handler = MockHandler()
            async with broker.consumer("orders", group="billing", handler=handler):
                producer, began = broker.producer(), asyncio.get_running_loop().time()
                await producer.publish(Message("orders", b"day"), after=timedelta(days=1))
                await producer.publish_batch([Message("orders", b"minute")], after=timedelta(minutes=1))
                messages = await handler.handled(2, timeout=100_000)
                assert [message.value for message in messages] == [b"minute", b"day"]
                assert asyncio.get_running_loop().time() - began == pytest.approx(86_400, abs=5)

    run_virtual(scenario())


def test_many_cancelled_leave_nothing_behind() -> None:
    async def scenario() -> None:
        async with connect("memory://") as broker:
            producer = broker.producer()
            for number in range(2_000):
                message = Message("orders", b"%d" % number)
                await producer.publish(message, after=3600, schedule_id=f"s-{number % 50}")
            found = await broker.schedules("orders", limit=1000)
            assert {entry.message.value for entry in found} == {b"%d" % n for n in range(1_950, 2_000)}
            topic = broker.transmission.driver._topics["orders"]  # type: ignore[attr-defined]
            assert len(topic.scheduled) <= 101

    run_virtual(scenario())


async def test_a_contract_is_scheduled_like_a_message() -> None:
    orders = Topic("orders", dict[str, int])
    async with connect("memory://") as broker:
        due = datetime.now(UTC) + timedelta(days=1)
        await broker.producer().publish(orders, {"n": 1}, key="k", at=due, schedule_id="a")
        [entry] = await broker.schedules(orders)
        assert (entry.schedule_id, entry.due, entry.message.key) == ("a", due, b"k")
        assert await broker.cancel(orders, "a") is True
        assert await broker.cancel(orders, "a") is False


async def test_a_driver_that_keeps_nothing_refuses_at_the_call() -> None:
    async with connect("memory://") as broker:
        stub = StubDriver()
        broker.transmission.driver = stub
        with pytest.raises(UnsupportedError, match="cannot keep a message until later"):
            await broker.producer().publish(Message("orders", b"v"), after=1)


def test_a_blocking_producer_schedules() -> None:
    with connect("memory://blocking-later").blocking() as producer:
        producer.publish(Message("orders", b"v"), after=3600, schedule_id="a")
        producer.publish_batch([Message("orders", b"w")], after=3600)
        with pytest.raises(ConfigError, match="exclude each other"):
            producer.publish(Message("orders", b"v"), after=1, at=datetime.now(UTC))


async def test_a_mock_keeps_what_was_scheduled() -> None:
    producer = MockProducer()
    due = datetime(2030, 1, 1, tzinfo=UTC)
    await producer.publish(Message("orders", b"a"), at=due, schedule_id="a")
    await producer.publish(Message("orders", b"b"), at=due, schedule_id="a")
    await producer.publish_batch([Message("orders", b"c")], at=due)
    assert [(entry.schedule_id, entry.message.value) for entry in producer.scheduled] == [
        ("a", b"b"),
        (None, b"c"),
    ]
    assert len(producer.messages) == 3


async def test_what_is_scheduled_is_transformed_too() -> None:
    async with connect("memory://") as broker:
        producer = broker.producer(transforms=(compress("gzip", above=0),))
        await producer.publish(Message("orders", b"v" * 1000), after=3600, schedule_id="a")
        await producer.publish_batch([Message("orders", b"w" * 1000)], after=7200)
        found = await broker.schedules("orders")
        assert [entry.message.headers["content-encoding"] for entry in found] == ["gzip", "gzip"]
        assert [entry.schedule_id for entry in found] == ["a", None]
