"""A receiver that gets nothing though it should is opened anew."""

import asyncio

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import Message
from things_kit.testing.stub import NATIVE_DELAY, StubDriver, broker_of


@virtual
async def test_a_receiver_that_gets_nothing_though_it_should_is_opened_anew() -> None:
    driver = StubDriver(NATIVE_DELAY)
    driver.hold("fetch")  # the client has lost its place, and waits for ever
    driver.overdue = 5
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=Recorder()):
        began = asyncio.get_running_loop().time()
        await until(lambda: driver.calls.count("subscribe") == 2, within=60)
        assert asyncio.get_running_loop().time() - began > 30


@virtual
async def test_health_says_so_meanwhile_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    driver = StubDriver(NATIVE_DELAY)
    driver.hold("fetch")
    driver.overdue = 5
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=Recorder()) as consumer:
        driver.hold("subscribe")
        await until(lambda: consumer.health().reason is not None, within=60)
        assert "5 messages wait for it" in str(consumer.health().reason)
        await asyncio.sleep(5)
    said = [record for record in caplog.records if "messages wait for it" in record.getMessage()]
    assert len(said) == 1


@pytest.mark.parametrize("overdue", [0, None])
@virtual
async def test_one_that_need_not_get_anything_is_left_alone(overdue: int | None) -> None:
    driver = StubDriver(NATIVE_DELAY)
    driver.overdue = overdue
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=Recorder()):
        await asyncio.sleep(300)
    assert driver.calls.count("subscribe") == 1


@virtual
async def test_one_that_works_or_has_no_room_is_not_asked() -> None:
    driver, recorder = StubDriver(NATIVE_DELAY), Recorder(lambda _: asyncio.sleep(200))
    driver.overdue = 5
    driver.put(Message("t", b"1", id="1"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await asyncio.sleep(150)
        assert "overdue" not in driver.calls


@virtual
async def test_a_paused_consumer_is_not_asked() -> None:
    driver = StubDriver(NATIVE_DELAY)
    driver.overdue = 5
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=Recorder()) as consumer:
        consumer.pause()
        await asyncio.sleep(300)
    assert "overdue" not in driver.calls


@virtual
async def test_one_that_stalls_after_a_pause_is_opened_anew() -> None:
    """What came before the pause is older than the silence, which begins with its end."""
    driver, recorder = StubDriver(NATIVE_DELAY), Recorder()
    driver.put(Message("t", b"1", id="1"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder) as consumer:
        await until(lambda: driver.acknowledged)
        consumer.pause()
        await asyncio.sleep(60)
        driver.hold("fetch")
        driver.overdue = 5
        consumer.resume()
        resumed = asyncio.get_running_loop().time()
        await until(lambda: driver.calls.count("subscribe") == 2, within=60)
        assert asyncio.get_running_loop().time() - resumed > 25


@virtual
async def test_one_that_got_something_while_the_broker_was_asked_is_left_alone() -> None:
    driver, recorder = StubDriver(NATIVE_DELAY), Recorder()
    driver.overdue = 1
    asked = driver.hold("overdue")
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        for number in range(10):
            asked.clear()
            await until(lambda: driver.calls.count("overdue") == number + 1, within=60)  # noqa: B023 - waited for here
            driver.put(Message("t", b"1", id=str(number)))
            await until(lambda: len(driver.acknowledged) == number + 1, within=1)  # noqa: B023
            asked.set()
            await asyncio.sleep(1)
    assert driver.calls.count("subscribe") == 1


@virtual
async def test_what_a_broker_does_not_answer_is_no_reason() -> None:
    driver = StubDriver(NATIVE_DELAY)
    driver.overdue = 5
    driver.hold("overdue")
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=Recorder()):
        await asyncio.sleep(300)
    assert driver.calls.count("subscribe") == 1
