"""Following the credit: another consumer where there is to be far more, and nothing is on its way to the one that goes."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("pika")

from pika.spec import Basic

from tests.engine.scenario import until, virtual
from things_kit.brokers.rabbitmq.credit import Consumers

HALF = 0.05
"""Seconds from us to the broker, or back."""


class Queue:
    """One that has `waiting` messages, far off; what is delivered is acknowledged at once, where that is allowed."""

    def __init__(self, waiting: int) -> None:
        self.prefetch: list[int] = []
        self.in_flight_at_cancel: list[int] = []
        self.acknowledged = 0
        self._waiting = waiting
        self._tag = self._current = 0
        self._unsettled: dict[int, int] = {}
        self._in_flight = 0
        self._settling: set[asyncio.Task[None]] = set()
        self.consumers = Consumers(self, "q", {}, 100, steady=False)  # type: ignore[arg-type] # as much as it uses

    async def ask(self, *methods: Any) -> None:
        await asyncio.sleep(HALF)
        for method in methods:
            if isinstance(method, Basic.Qos):
                self.prefetch.append(method.prefetch_count)
            elif isinstance(method, Basic.Consume):
                self._current += 1
                self._deliver()
            elif isinstance(method, Basic.Cancel):
                self.in_flight_at_cancel.append(self._in_flight)
                self._current += 1
        await asyncio.sleep(HALF)

    def add(self) -> None:
        """One more message is published."""
        self._waiting += 1
        self._deliver()

    def _deliver(self) -> None:
        mine = sum(consumer == self._current for consumer in self._unsettled.values())
        while self._current % 2 and self._waiting and mine < self.prefetch[-1]:
            mine, self._waiting, self._tag = mine + 1, self._waiting - 1, self._tag + 1
            self._unsettled[self._tag] = self._current
            self._in_flight += 1
            # In pieces, so that no consumer ever has all that it may have at once
            late = HALF * (1 + self._tag % 3)
            asyncio.get_running_loop().call_later(late, self._arrive, self._tag)

    def _arrive(self, tag: int) -> None:
        self._in_flight -= 1
        self.consumers.arrived(tag)
        settling = asyncio.create_task(self._settle(tag))
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)

    async def _settle(self, tag: int) -> None:
        await self.consumers.settling.wait()
        self.consumers.settled(tag)
        await asyncio.sleep(HALF)
        del self._unsettled[tag]
        self.acknowledged += 1
        self._deliver()


async def running(queue: Queue) -> "asyncio.Task[None]":
    task = asyncio.create_task(queue.consumers.run())
    queue.consumers.credit(60)
    await until(lambda: queue.acknowledged > 100 or not queue._waiting)
    return task


async def over(queue: Queue, task: "asyncio.Task[None]") -> None:
    assert not any(queue.in_flight_at_cancel), "what was on its way came out of order"
    queue.consumers.finish()
    await task
    await until(lambda: not queue._unsettled)
    assert queue.consumers.settling.is_set()


@virtual
async def test_all_that_may_be_held_is_asked_for_though_there_is_always_something_on_its_way() -> None:
    queue = Queue(10_000)
    task = await running(queue)
    queue.consumers.credit(100)
    await until(lambda: queue.prefetch[-1] == 100, within=2)
    await over(queue, task)


@virtual
async def test_where_too_little_waits_to_fill_it_the_consumer_goes_on_as_it_was() -> None:
    queue = Queue(50)
    task = await running(queue)
    queue.consumers.credit(100)
    await asyncio.sleep(10)
    assert queue.prefetch == [60]
    assert queue.acknowledged == 50
    await over(queue, task)


@virtual
async def test_acknowledgements_do_not_wait_for_what_trickles_in() -> None:
    """Each message that comes would be a reason to wait for the next one."""
    queue = Queue(50)
    task = await running(queue)
    queue.consumers.credit(100)
    for _ in range(10):
        queue.add()
        await asyncio.sleep(0.2)
    assert queue.acknowledged > 50
    await over(queue, task)


@virtual
async def test_who_stops_while_a_consumer_is_filled_waits_for_nothing_more() -> None:
    queue = Queue(10_000)
    task = await running(queue)
    queue.consumers.credit(100)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await over(queue, task)
