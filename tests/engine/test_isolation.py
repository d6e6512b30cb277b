"""What one handler does to its task is not seen by the next message; pausing."""

import asyncio
import contextvars
import sys

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import Message, RetryPolicy
from things_kit.engine.driver import Capabilities
from things_kit.testing.stub import BARE, NATIVE_DELAY, NATIVE_LANES, StubDriver, broker_of

ONCE = RetryPolicy(attempts=1)
KINDS = pytest.mark.parametrize("native", [BARE, NATIVE_DELAY, NATIVE_LANES], ids=["bare", "delay", "lanes"])
tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


def many(count: int) -> list[Message]:
    return [Message("t", b"%d" % n, id=str(n)) for n in range(count)]


@pytest.mark.parametrize("waits", [True, False])
@virtual
async def test_a_context_variable_that_a_handler_sets_is_unseen_by_the_next_message(waits: bool) -> None:
    seen: list[str] = []

    async def handle(message: Message) -> None:
        seen.append(tenant.get())
        tenant.set(message.value.decode())
        if waits:
            await asyncio.sleep(0.01)
        assert tenant.get() == message.value.decode()

    driver = StubDriver(NATIVE_DELAY)
    driver.put(*many(20))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=handle, concurrency=2):
        await until(lambda: len(driver.acknowledged) == 20)
    assert seen == ["nobody"] * 20


@virtual
async def test_what_was_set_before_the_consumer_started_is_seen_by_all() -> None:
    seen: list[str] = []

    async def handle(_: Message) -> None:
        seen.append(tenant.get())

    driver = StubDriver(NATIVE_DELAY)
    driver.put(*many(3))
    tenant.set("acme")
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=handle):
        tenant.set("other")
        await until(lambda: len(driver.acknowledged) == 3)
    assert seen == ["acme"] * 3


@virtual
async def test_a_value_that_cannot_be_compared_is_another_one() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ValueError("no")

        __hash__ = None  # type: ignore[assignment]

    odd: contextvars.ContextVar[Odd | None] = contextvars.ContextVar("odd", default=None)

    async def handle(_: Message) -> None:
        assert odd.get() is None
        odd.set(Odd())

    driver = StubDriver(NATIVE_DELAY)
    driver.put(*many(5))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=handle):
        await until(lambda: len(driver.acknowledged) == 5)


async def exits(_: Message) -> None:
    sys.exit(3)


async def cancels_itself(_: Message) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


async def closes_itself(_: Message) -> None:
    raise GeneratorExit


@pytest.mark.parametrize("handle", [exits, cancels_itself, closes_itself])
@virtual
async def test_a_handler_that_means_to_end_its_task_has_failed(handle: object) -> None:
    driver = StubDriver(NATIVE_DELAY)
    driver.put(*many(3))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, retry=ONCE) as consumer,  # type: ignore[call-overload]
    ):
        await until(lambda: len(driver.acknowledged) == 3)
        assert consumer.health().running
    assert len(driver.topics["t-dlq"]) == 3


@virtual
async def test_a_cancellation_that_comes_as_the_handler_returns_reaches_no_other_message() -> None:
    async def handle(message: Message) -> None:
        if message.value == b"0":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return
        await asyncio.sleep(0)

    driver = StubDriver(NATIVE_DELAY)
    driver.put(*many(3))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=handle, retry=ONCE):
        await until(lambda: len(driver.acknowledged) == 3)
    assert driver.topics["t-dlq"] == []


@KINDS
@virtual
async def test_a_paused_consumer_begins_nothing_until_it_is_resumed(native: Capabilities) -> None:
    driver, recorder = StubDriver(native), Recorder(lambda _: asyncio.sleep(1))
    driver.put(*many(6))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=2) as consumer,
    ):
        await until(lambda: recorder.running == 2)
        consumer.pause()
        consumer.pause()
        assert consumer.paused
        await asyncio.sleep(60)
        assert len(recorder.seen) == len(recorder.ended) == 2
        assert (await broker.health()).ok
        consumer.resume()
        consumer.resume()
        assert not consumer.paused
        await until(lambda: len(driver.acknowledged) == 6)
    assert {message.attempt for _, message in recorder.seen} == {1}
    assert driver.breaches == []


@virtual
async def test_a_consumer_may_be_paused_before_it_starts() -> None:
    driver, recorder = StubDriver(NATIVE_DELAY), Recorder()
    driver.put(*many(2))
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        consumer.pause()
        async with consumer:
            await asyncio.sleep(10)
            assert not recorder.seen
            consumer.resume()
            await until(lambda: len(driver.acknowledged) == 2)


@virtual
async def test_a_retry_waits_while_its_consumer_is_paused() -> None:
    async def answer(message: Message) -> None:
        if message.attempt == 1:
            raise ValueError("later")

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(Message("t", b"1", b"k", id="1"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder) as consumer:
        await until(lambda: recorder.ended or recorder.seen)
        consumer.pause()
        await asyncio.sleep(60)
        assert len(recorder.seen) == 1
        consumer.resume()
        await until(lambda: driver.acknowledged)
    assert recorder.attempts == [1, 2]


@virtual
async def test_a_paused_consumer_stops() -> None:
    driver, recorder = StubDriver(NATIVE_DELAY), Recorder()
    driver.put(*many(3))
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        consumer.pause()
        await consumer.start()
        await asyncio.sleep(1)
        await consumer.stop()
    assert recorder.seen == []
    assert driver.breaches == []
