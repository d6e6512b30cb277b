"""A broker that is far off: what is asked and what is told are under way side by side, and each call is about as much as can be."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from tests.engine.pushed import PushingDriver
from tests.engine.scenario import Recorder, until, virtual
from things_kit import Message
from things_kit.engine.driver import Delivery, Release, Subscription
from things_kit.testing.stub import BARE, NATIVE_DELAY, NATIVE_LANES, StubDriver, broker_of

ROUND_TRIP = 0.1
WINDOW = 100


class FarReceiver:
    """The stub's, half a round trip away, each way."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.asked: list[int] = []
        self.told = 0
        # Members of its own, as a protocol does not ask `__getattr__` from Python 3.12 on
        self.quiesce, self.extend, self.overdue, self.close = (
            inner.quiesce,
            inner.extend,
            inner.overdue,
            inner.close,
        )

    async def fetch(self, limit: int, wait: float) -> None:
        self.asked.append(limit)
        await asyncio.sleep(ROUND_TRIP)
        await self._inner.fetch(limit, wait)

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        self.told += 1
        await asyncio.sleep(ROUND_TRIP / 2)
        await self._inner.settle(acknowledged, released)
        await asyncio.sleep(ROUND_TRIP / 2)


class FarDriver(StubDriver):
    async def subscribe(self, subscription: Subscription) -> Any:
        self.far = FarReceiver(await super().subscribe(subscription))
        return self.far


def many(count: int) -> list[Message]:
    return [Message("t", b"%d" % n, b"k%d" % n, id=str(n)) for n in range(count)]


@pytest.mark.parametrize(
    "wait", [None, 0.0, 0.001], ids=["at once", "after a turn of the loop", "after 1 ms"]
)
@pytest.mark.parametrize("native", [NATIVE_LANES, NATIVE_DELAY, BARE], ids=["lanes", "delay", "bare"])
@virtual
async def test_as_much_as_may_be_held_is_handled_in_each_round_trip(native: Any, wait: float | None) -> None:
    driver = FarDriver(native)
    recorder = Recorder(None if wait is None else lambda _: asyncio.sleep(wait))
    driver.put(*many(3000))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=20, max_in_flight=WINDOW),
    ):
        await until(lambda: len(recorder.ended) >= 1000)
        began, before = asyncio.get_running_loop().time(), len(recorder.ended)
        await until(lambda: len(driver.acknowledged) == 3000)
        took = asyncio.get_running_loop().time() - began
    assert driver.breaches == []
    assert driver.peak <= WINDOW
    assert (3000 - before) / took >= 0.8 * WINDOW / ROUND_TRIP


@virtual
async def test_nothing_waits_for_more_where_the_handler_is_slow() -> None:
    driver, recorder = FarDriver(NATIVE_DELAY), Recorder(lambda _: asyncio.sleep(1.0))
    driver.put(*many(6))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=2),
    ):
        await until(lambda: len(driver.acknowledged) == 6)
    assert all(later - earlier < 1.0 + 2 * ROUND_TRIP for earlier, later in pairwise(sorted(recorder.times)))


@virtual
async def test_where_credit_is_fixed_all_that_may_be_held_is_said_though_it_is_not_twice_as_much() -> None:
    driver, recorder = PushingDriver(fixed_credit=True), Recorder()
    driver.put(*many(3000))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=20, max_in_flight=WINDOW),
    ):
        await until(lambda: len(driver.acknowledged) == 3000)
        assert WINDOW in driver.told
    assert driver.peak <= WINDOW
