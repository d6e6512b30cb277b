"""Receivers that are pushed to: how much credit they are given, and when it is said."""

import asyncio
from itertools import pairwise

import pytest

from tests.engine.pushed import PushingDriver
from tests.engine.scenario import Recorder, until, virtual
from things_kit import Message
from things_kit.engine.driver import ConnectionLost, Delivery
from things_kit.testing.stub import broker_of

EITHER = pytest.mark.parametrize("fixed", [False, True], ids=["exact", "fixed"])


def many(count: int, key: bytes | None = None) -> list[Message]:
    return [Message("t", b"%d" % n, key, id=str(n)) for n in range(count)]


@EITHER
@virtual
async def test_all_that_is_pushed_is_handled_and_the_first_credit_is_what_can_run(fixed: bool) -> None:
    driver, recorder = PushingDriver(fixed_credit=fixed), Recorder()
    driver.put(*many(3000))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=3),
    ):
        await until(lambda: len(driver.acknowledged) == 3000)
    assert driver.told[0] == 3
    assert driver.peak <= 1000
    assert driver.breaches == []


@EITHER
@virtual
async def test_a_slow_handler_has_no_more_credit_than_it_can_begin(fixed: bool) -> None:
    driver, recorder = PushingDriver(fixed_credit=fixed), Recorder(lambda _: asyncio.sleep(100))
    driver.put(*many(100))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=2, drain_timeout=0),
    ):
        await until(lambda: recorder.running == 2)
        await asyncio.sleep(60)
    assert driver.peak == 2


@virtual
async def test_where_credit_is_fixed_it_is_said_when_it_has_doubled_or_is_used_up() -> None:
    driver, recorder = PushingDriver(fixed_credit=True), Recorder(lambda _: asyncio.sleep(0.001))
    driver.put(*many(3000))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: len(driver.acknowledged) == 3000)
        told = driver.told
    assert len(told) < 40
    assert all(later > earlier or later * 2 <= earlier for earlier, later in pairwise(told))


@virtual
async def test_where_credit_is_fixed_less_is_said_every_five_seconds_at_most() -> None:
    async def answer(_: Message) -> None:
        await asyncio.sleep(0.001 if len(recorder.ended) < 2000 else 1.0)

    driver, recorder = PushingDriver(fixed_credit=True), Recorder(answer)
    driver.put(*many(2060))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: len(driver.acknowledged) == 2060)
        told = driver.receivers[-1].told
    shrank = [time for (_, before), (time, after) in pairwise(told) if after < before]
    assert shrank, "a handler that has become slow gives back its credit"
    assert all(later - earlier > 4.99 for earlier, later in pairwise(shrank))


@EITHER
@virtual
async def test_what_waits_behind_its_key_takes_nobody_s_credit(fixed: bool) -> None:
    """And that is said at once: a whole window of one key must not keep the other workers idle."""
    driver = PushingDriver(fixed_credit=fixed)
    recorder = Recorder(lambda message: asyncio.sleep(100 if message.key == b"k" else 0))
    driver.put(*many(50, b"k"), *(Message("t", b"x%d" % n, b"o%d" % n, id=f"x{n}") for n in range(20)))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=2, max_in_flight=80, drain_timeout=0),
    ):
        await until(lambda: len(driver.acknowledged) == 20, within=2)
    assert driver.peak <= 80


@EITHER
@virtual
async def test_a_paused_consumer_has_no_credit(fixed: bool) -> None:
    driver, recorder = PushingDriver(fixed_credit=fixed), Recorder()
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder) as consumer:
        await until(lambda: driver.told)
        consumer.pause()
        await until(lambda: driver.told[-1] == 0)
        driver.put(*many(3))
        await asyncio.sleep(30)
        assert recorder.seen == []
        consumer.resume()
        await until(lambda: len(driver.acknowledged) == 3)


@virtual
async def test_a_receiver_that_fails_is_opened_anew() -> None:
    driver, recorder = PushingDriver(), Recorder()
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: driver.receivers)
        driver.receivers[0].inbox.fail(ConnectionLost("the stream was closed"))
        await until(lambda: len(driver.receivers) == 2)
        driver.put(*many(3))
        await until(lambda: len(driver.acknowledged) == 3)
    assert driver.breaches == []


@virtual
async def test_what_is_pushed_after_a_stop_began_is_refused() -> None:
    driver, recorder = PushingDriver(), Recorder()
    late = Delivery(Message("t", b"late", id="late"))
    async with broker_of(driver) as broker:
        async with broker.consumer("t", group="g", handler=recorder):
            await until(lambda: driver.receivers)
        driver.receivers[0].inbox.put([late])
    assert driver.receivers[0].inbox.refused == [late]
    assert recorder.seen == []
