"""Each delivery is settled once at most, whatever happens while settlements are on their way."""

import asyncio
from collections import deque
from collections.abc import Sequence

import pytest

from tests.engine.scenario import virtual
from things_kit import Message
from things_kit.engine.driver import Capabilities, ConnectionLost, Delivery, Release
from things_kit.engine.lanes import Lanes
from things_kit.engine.loan import Loan


class Receiver:
    """Takes settlements, each only when `confirm` is set."""

    def __init__(self) -> None:
        self.confirm = asyncio.Event()
        self.settled: list[Delivery] = []
        self.calls = 0
        self.extended: list[tuple[float, int]] = []
        self.error: Exception | None = None

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        raise NotImplementedError

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        self.calls += 1
        await self.confirm.wait()
        if self.error is not None:
            raise self.error
        self.settled += [*acknowledged, *(release.delivery for release in released)]

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        self.extended.append((asyncio.get_running_loop().time(), len(deliveries)))

    async def close(self) -> None: ...


class Borrower:
    def settled(self) -> None: ...


class Fixture:
    def __init__(self, count: int, lease: float | None = None) -> None:
        self.receiver = Receiver()
        self.lanes = Lanes("key", deque())
        self.loan = Loan(self.receiver, Borrower(), self.lanes, Capabilities(lease=lease))
        self.deliveries = [Delivery(Message("t", str(n).encode(), b"k%d" % n)) for n in range(count)]
        self.loan.held.update(dict.fromkeys(self.deliveries, 0.0))
        self.lanes.admit(self.deliveries, self.loan)
        self.settling = asyncio.create_task(self.loan.settle())

    async def finish(self) -> None:
        self.receiver.confirm.set()
        self.loan.finish()
        await self.settling


@virtual
async def test_settlements_that_come_meanwhile_go_together() -> None:
    fixture = Fixture(10)
    fixture.loan.done(fixture.deliveries[0])
    await asyncio.sleep(1)
    for each in fixture.deliveries[1:]:
        fixture.loan.done(each)
    await fixture.finish()
    assert fixture.receiver.calls == 2
    assert fixture.receiver.settled == fixture.deliveries
    assert not fixture.loan.held


@virtual
async def test_what_is_on_its_way_back_is_not_given_back_again() -> None:
    fixture = Fixture(5)
    sending, waiting, released, busy, rest = fixture.deliveries
    fixture.loan.done(sending)
    await asyncio.sleep(1)
    fixture.loan.done(waiting)
    fixture.loan.release(Release(released))
    fixture.loan.release_all_but({busy})
    fixture.loan.release_all_but({busy})
    await fixture.finish()
    assert fixture.receiver.settled == [sending, waiting, released, rest]
    assert list(fixture.loan.held) == [busy]


@virtual
async def test_what_was_dropped_is_settled_no_more() -> None:
    fixture = Fixture(4)
    acknowledged, released, busy, other = fixture.deliveries
    fixture.loan.done(acknowledged)
    fixture.loan.release(Release(released))
    fixture.loan.drop(lambda each: each is not other)
    fixture.loan.done(busy)  # its handler has just ended
    fixture.loan.done(other)
    await fixture.finish()
    assert fixture.receiver.settled == [other]


@virtual
async def test_a_lane_is_unparked_only_once_its_release_is_confirmed() -> None:
    fixture = Fixture(1)
    fixture.loan.park(Release(fixture.deliveries[0], 5.0, 2))
    await asyncio.sleep(1)
    assert fixture.loan.take_unparked() == []
    fixture.receiver.confirm.set()
    await asyncio.sleep(1)
    assert fixture.loan.take_unparked() == [b"k0"]
    assert fixture.loan.take_unparked() == []
    await fixture.finish()


@virtual
async def test_a_connection_lost_while_settling_is_raised() -> None:
    fixture = Fixture(1)
    fixture.receiver.error = ConnectionLost("gone")
    fixture.loan.done(fixture.deliveries[0])
    fixture.receiver.confirm.set()
    with pytest.raises(ConnectionLost):
        await fixture.settling
    assert list(fixture.loan.held) == fixture.deliveries


@virtual
async def test_leases_are_extended_three_times_a_lease_while_anything_is_held() -> None:
    fixture = Fixture(2, lease=9.0)
    extending = asyncio.create_task(fixture.loan.extend())
    await asyncio.sleep(10)
    fixture.receiver.confirm.set()
    for each in fixture.deliveries:
        fixture.loan.done(each)
    await asyncio.sleep(10)
    extending.cancel()
    assert fixture.receiver.extended == [(3, 2), (6, 2), (9, 2)]
    await fixture.finish()


@virtual
async def test_without_leases_nothing_is_extended() -> None:
    fixture = Fixture(1)
    await fixture.loan.extend()
    assert fixture.receiver.extended == []
    await fixture.finish()


@virtual
async def test_a_loan_knows_its_oldest() -> None:
    fixture = Fixture(3)
    for since, each in zip((5.0, 2.0, 9.0), fixture.deliveries, strict=True):
        fixture.loan.held[each] = since
    assert fixture.loan.oldest() == 2.0
    fixture.loan.held.clear()
    assert fixture.loan.oldest() is None
    await fixture.finish()
