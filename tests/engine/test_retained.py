"""A stopped consumer is nobody's any more: nothing keeps it, or what it handled, in memory."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable

import pytest

from tests.engine.scenario import until, virtual
from things_kit import Message, RetryPolicy
from things_kit.engine.broker import Broker
from things_kit.engine.driver import Capabilities
from things_kit.testing.stub import BARE, NATIVE_DELAY, NATIVE_LANES, StubDriver, broker_of

KINDS = pytest.mark.parametrize("native", [BARE, NATIVE_DELAY, NATIVE_LANES], ids=["bare", "delay", "lanes"])
Answer = Callable[[Message], Awaitable[None]]


async def stopped(
    broker: Broker, driver: StubDriver, answer: Answer, begun: asyncio.Event
) -> "weakref.ref[object]":
    """A consumer that was stopped once its handler had begun with a message."""
    consumer = broker.consumer(
        "t",
        group="g",
        handler=answer,
        drain_timeout=1.0,
        retry=RetryPolicy(attempts=1),
        dead_letter="{topic}-dlq",
    )
    await consumer.start()
    driver.put(Message("t", b"v" * 1000, b"k", id="i"), Message("t", b"w" * 1000, b"k", id="j"))
    await until(begun.is_set)
    await asyncio.sleep(0.1)
    await consumer.stop()
    return weakref.ref(consumer)


def collected(consumer: "weakref.ref[object]") -> bool:
    gc.collect()
    return consumer() is None


@KINDS
@virtual
async def test_a_consumer_that_has_handled_something_is_collected_once_it_is_stopped(
    native: Capabilities,
) -> None:
    driver, begun = StubDriver(native), asyncio.Event()

    async def answer(_: Message) -> None:
        begun.set()

    async with broker_of(driver) as broker:
        assert collected(await stopped(broker, driver, answer, begun))


@KINDS
@virtual
async def test_a_consumer_whose_stop_cancelled_a_handler_is_collected(native: Capabilities) -> None:
    driver, begun = StubDriver(native), asyncio.Event()

    async def answer(_: Message) -> None:
        begun.set()
        await asyncio.sleep(3600)

    async with broker_of(driver) as broker:
        assert collected(await stopped(broker, driver, answer, begun))


@KINDS
@virtual
async def test_a_consumer_whose_handler_failed_is_collected(native: Capabilities) -> None:
    driver, begun = StubDriver(native), asyncio.Event()

    async def answer(_: Message) -> None:
        begun.set()
        raise ValueError("no")

    log = logging.getLogger("things_kit.consumer")
    log.disabled = True  # the records that pytest keeps have tracebacks, and these all that was in hand
    try:
        async with broker_of(driver) as broker:
            assert collected(await stopped(broker, driver, answer, begun))
    finally:
        log.disabled = False
