"""Drivers whose clients swallow a cancellation, as asyncio.wait_for did before Python 3.12."""

import asyncio
import contextlib
from typing import Any

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import Message
from things_kit.engine.cancelling import cancellable, ended, finished
from things_kit.engine.driver import Capabilities, ConnectionLost
from things_kit.testing.stub import NATIVE_DELAY, StubDriver, StubReceiver, broker_of

LEASED = Capabilities(delay=True, attempts=True, lease=9.0)


class DeafDriver(StubDriver):
    """Waits once more, for ever, where a call that waits is cancelled for the first time."""

    def __init__(self, call: str, native: Capabilities = NATIVE_DELAY) -> None:
        super().__init__(native)
        self.deaf_in = call
        self.swallowed = 0

    async def enter(self, call: str, receiver: StubReceiver | None = None) -> None:
        try:
            await super().enter(call, receiver)
            if call == self.deaf_in == "fetch" and not self.topics["t"]:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            if call != self.deaf_in or self.swallowed:
                raise
            self.swallowed += 1
            await asyncio.Event().wait()


async def stops(driver: StubDriver, *messages: Message, when: Any, cut: bool = False) -> float:
    """Consume until it is so, stop, and say how long that took."""
    driver.put(*messages)
    loop = asyncio.get_running_loop()
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=Recorder())
        await consumer.start()
        await until(when)
        if cut:
            driver.cut()
            await until(lambda: driver.calls.count("subscribe") == 2)
        began = loop.time()
        await consumer.stop()
        return loop.time() - began


@virtual
async def test_a_receive_that_swallows_its_cancellation_does_not_hold_up_the_stop() -> None:
    driver = DeafDriver("fetch")
    driver.topics["t"] = []
    assert await stops(driver, when=lambda: "fetch" in driver.calls) < 5
    assert driver.swallowed == 1
    assert "close receiver" in driver.calls


@pytest.mark.parametrize("call", ["settle", "extend"])
@virtual
async def test_a_call_that_swallows_its_cancellation_does_not_hold_up_the_next_connection(call: str) -> None:
    driver = DeafDriver(call, LEASED)
    held = driver.hold(call)
    release = asyncio.Event()

    async def answer(message: Message) -> None:
        if call == "extend":
            await release.wait()

    driver.put(Message("t", b"1", id="1"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=Recorder(answer), concurrency=2),
    ):
        await until(lambda: call in driver.calls)
        driver.cut()
        await until(lambda: driver.calls.count("subscribe") == 2, 30)
        held.set()
        release.set()
        await until(lambda: driver.acknowledged, 30)
    assert driver.swallowed == 1


@virtual
async def test_a_subscribe_that_swallows_its_cancellation_does_not_hold_up_the_stop() -> None:
    class Late(StubDriver):
        async def subscribe(self, subscription: Any) -> StubReceiver:
            receiver = await super().subscribe(subscription)
            if self.calls.count("subscribe") > 1:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    await asyncio.sleep(1)
            return receiver

    driver = Late(NATIVE_DELAY)
    assert await stops(driver, when=lambda: "fetch" in driver.calls, cut=True) < 3


# --- ended


async def deaf(times: int) -> None:
    """Swallows so many cancellations."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not times:
                raise
            times -= 1


@virtual
async def test_a_task_has_ended_however_often_it_swallows_its_cancellation() -> None:
    tasks = [asyncio.create_task(deaf(times)) for times in (0, 1, 3)]
    await asyncio.sleep(0)
    await ended(*tasks)
    assert all(task.cancelled() for task in tasks)
    assert asyncio.get_running_loop().time() == pytest.approx(3)


@virtual
async def test_a_task_that_cleans_up_is_not_cancelled_again() -> None:
    cleaned = []

    async def tidy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.9)
            cleaned.append(True)

    task = asyncio.create_task(tidy())
    await asyncio.sleep(0)
    await ended(task)
    assert cleaned == [True]


@virtual
async def test_errors_and_results_of_ended_tasks_are_nobodys() -> None:
    async def fails() -> None:
        raise ConnectionLost("x")

    done = asyncio.create_task(fails())
    await asyncio.wait({done})
    await ended(done)


@virtual
async def test_who_is_cancelled_while_it_ends_others_still_leaves_none_behind() -> None:
    task = asyncio.create_task(deaf(2))
    await asyncio.sleep(0)
    ending = asyncio.create_task(ended(task))
    await asyncio.sleep(0.5)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert task.cancelled()


# --- a user's own task


class Swallowing(StubDriver):
    """Answers as if nothing had been when it is cancelled."""

    async def lag(self, topic: str, group: str) -> int | None:
        await self.swallow()
        return await super().lag(topic, group)

    async def ping(self) -> None:
        await self.swallow()

    async def swallow(self) -> None:
        self.calls.append("waits")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


@virtual
async def test_what_fails_in_the_moment_in_which_its_waiter_is_cancelled_is_nobodys_error() -> None:
    """As a receiver that is being closed when its topic is removed and its consumer stops: nothing of it is reported."""

    async def fail() -> None:
        await asyncio.sleep(1)
        waiting.cancel()
        raise ConnectionLost("gone")

    waiting = asyncio.create_task(finished(asyncio.create_task(fail()), 5.0))
    await asyncio.wait({waiting})
    assert waiting.cancelled()


@pytest.mark.parametrize("call", ["lag", "health"])
@virtual
async def test_a_cancellation_that_a_driver_swallows_still_reaches_its_task(call: str) -> None:
    driver = Swallowing(NATIVE_DELAY)
    async with broker_of(driver) as broker:

        async def ask() -> None:
            await (broker.lag("t", "g") if call == "lag" else broker.health())
            await asyncio.Event().wait()

        asking = asyncio.create_task(ask())
        await until(lambda: "waits" in driver.calls)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


@virtual
async def test_a_replay_whose_driver_swallows_the_cancellation_ends_and_gives_everything_back() -> None:
    class Deaf(StubReceiver):
        async def fetch(self, limit: int, wait: float) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await super().fetch(limit, wait)

    driver = StubDriver(NATIVE_DELAY)
    driver.put(Message("t", b"1", id="1"))
    driver.hold("fetch")
    async with broker_of(driver) as broker:
        receivers = []
        real = driver.subscribe

        async def subscribe(subscription: Any) -> StubReceiver:
            receiver = await real(subscription)
            receiver.__class__ = Deaf
            receivers.append(receiver)
            return receiver

        driver.subscribe = subscribe  # type: ignore[method-assign]
        replaying = asyncio.create_task(broker.replay("t"))
        await until(lambda: "fetch" in driver.calls)
        replaying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await replaying
        assert [receiver.closed for receiver in receivers] == [True]


@virtual
async def test_a_cancellation_that_arrived_does_not_arrive_again() -> None:
    cleaned = []

    async def ask() -> None:
        try:
            with cancellable():
                await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            cleaned.append(True)

    task = asyncio.create_task(ask())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [True]
