"""Copies that came before they are due, as the broker could not keep them for so long: they wait on."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from tests.engine.pushed import Counting
from tests.engine.scenario import Recorder, until, virtual
from things_kit import Message
from things_kit.engine.clock import steady
from things_kit.engine.driver import Capabilities, Delivery, Later, Subscription
from things_kit.testing.stub import StubDriver, StubReceiver, broker_of


class Early(Counting):
    """The first time that an early message comes, it is due in `wait` seconds."""

    def __init__(self, driver: "EarlyDriver", subscription: Subscription) -> None:
        super().__init__(subscription.inbox)
        self._driver = driver

    def put(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        for delivery in deliveries:
            if delivery.message.id in self._driver.early:
                self._driver.early.remove(delivery.message.id)
                delivery.due = steady() + self._driver.wait
        return super().put(deliveries)


class EarlyDriver(StubDriver):
    def __init__(self, capabilities: Capabilities, wait: float) -> None:
        super().__init__(capabilities)
        self.wait = wait
        self.early: set[str | None] = {"1", "3"}

    async def subscribe(self, subscription: Subscription) -> StubReceiver:
        return await super().subscribe(msgspec.structs.replace(subscription, inbox=Early(self, subscription)))


class CopyingDriver(EarlyDriver):
    """Keeps copies, and hands them out when they are due."""

    def __init__(self, capabilities: Capabilities, wait: float) -> None:
        super().__init__(capabilities, wait)
        self.copies: list[Later] = []

    async def send_later(self, copies: Sequence[Later]) -> Sequence[Exception | None]:
        self.copies += copies
        for copy in copies:
            wait = copy.due.timestamp() - steady()
            asyncio.get_running_loop().call_later(wait, self.put, copy.message)
        return [None] * len(copies)


async def handled_after(driver: EarlyDriver) -> tuple[Recorder, float]:
    """One message, and how long it takes."""
    recorder, began = Recorder(), asyncio.get_running_loop().time()
    driver.put(Message("t", b"x", b"k", id="1"), Message("t", b"y", b"k", id="2"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: len(driver.acknowledged) == 2 + len(getattr(driver, "copies", ())))
    assert recorder.values == [b"y", b"x"]
    assert recorder.attempts == [1, 1]
    assert driver.breaches == []
    return recorder, recorder.times[1] - began


@pytest.mark.parametrize("wait", [0.4, 30.0])
@virtual
async def test_it_waits_in_the_broker_where_that_keeps_delays(wait: float) -> None:
    driver = EarlyDriver(Capabilities(delay=True, delay_from=1.0, attempts=True), wait)
    _, took = await handled_after(driver)
    assert took == pytest.approx(wait, abs=0.1)
    assert len(driver.released) == (wait > 1)


@pytest.mark.parametrize("wait", [0.4, 30.0])
@virtual
async def test_it_waits_as_another_copy_where_that_is_how_messages_wait(wait: float) -> None:
    driver = CopyingDriver(Capabilities(), wait)
    _, took = await handled_after(driver)
    assert took == pytest.approx(wait, abs=0.1)
    assert [copy.attempt for copy in driver.copies] == [1] * (wait > 1)


@virtual
async def test_it_waits_in_memory_where_nothing_else_can_be_and_goes_back_with_a_stop() -> None:
    driver = EarlyDriver(Capabilities(), 30.0)
    _, took = await handled_after(driver)
    assert took == pytest.approx(30.0, abs=0.1)
    driver.put(Message("t", b"z", id="3"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=Recorder()):
        await until(lambda: not driver.early)
    assert [release.delivery.message.id for release in driver.released] == ["3"]
