"""The engine under virtual time: its waits are the event loop's, so a day of back-offs ends at once."""

import asyncio
import time
from itertools import pairwise

import pytest

from things_kit import Message, RetryPolicy, connect
from things_kit.testing import MockHandler, run_virtual


def test_a_day_of_back_offs_takes_no_time() -> None:
    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        times: list[float] = []
        done = asyncio.Event()

        async def handle(message: Message) -> None:
            times.append(loop.time())
            if message.attempt < 5:
                raise ValueError("not yet")
            done.set()

        policy = RetryPolicy(attempts=5, first=3600, factor=2.0, limit=86400, jitter=0.0)
        async with (
            connect("memory://") as broker,
            broker.consumer("orders", group="billing", handler=handle, retry=policy),
        ):
            await broker.producer().publish(Message("orders", b"x", key=b"k"))
            await done.wait()
        return [later - earlier for earlier, later in pairwise(times)]

    began = time.monotonic()
    waits = run_virtual(scenario())
    assert waits == pytest.approx([3600, 7200, 14400, 28800], rel=0.01)
    assert time.monotonic() - began < 600


def test_a_drain_timeout_takes_no_time() -> None:
    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        began = asyncio.Event()

        async def hang(message: Message) -> None:
            began.set()
            await asyncio.Event().wait()

        async with connect("memory://") as broker:
            consumer = broker.consumer("orders", group="billing", handler=hang, drain_timeout=600)
            await consumer.start()
            await broker.producer().publish(Message("orders", b"x"))
            await began.wait()
            stopping = loop.time()
            await consumer.stop()
            return loop.time() - stopping

    assert run_virtual(scenario()) == pytest.approx(600, rel=0.02)


def test_a_mock_handler_serves_as_a_handler() -> None:
    async def scenario() -> MockHandler:
        handler = MockHandler(outcomes=[ValueError("once"), None])
        async with (
            connect("memory://") as broker,
            broker.consumer("orders", group="billing", handler=handler),
        ):
            await broker.producer().publish(Message("orders", b"x", key=b"k"))
            await handler.handled(2)
        return handler

    handler = run_virtual(scenario())
    handler.assert_handled(topic="orders", key=b"k", value=b"x", count=2)
    assert [message.attempt for message in handler.messages] == [1, 2]


def test_a_consumer_that_finishes_nothing_for_long_is_not_well() -> None:
    async def scenario() -> list[bool]:
        release = asyncio.Event()

        async def hang(message: Message) -> None:
            await release.wait()

        states = []
        async with connect("memory://") as broker, broker.consumer("orders", group="billing", handler=hang):
            await broker.producer().publish(Message("orders", b"x"))
            await asyncio.sleep(60)
            states.append((await broker.health()).ok)
            await asyncio.sleep(600)
            stuck = await broker.health()
            states.append(stuck.ok)
            assert "stuck" in (stuck.reason or "")
            release.set()
            await asyncio.sleep(1)
            states.append((await broker.health()).ok)
        return states

    assert run_virtual(scenario()) == [True, False, True]
