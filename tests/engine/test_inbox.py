"""Each delivery is settled once at most, whatever happens while settlements are on their way."""

import asyncio
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine.scenario import virtual
from things_kit import Message
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription, Which
from things_kit.engine.inbox import ConsumerInbox
from things_kit.engine.lanes import Lanes
from things_kit.engine.leases import keep_leases
from things_kit.engine.state import State
from things_kit.engine.window import Window


class Receiver:
    """Takes settlements, each only when `confirm` is set."""

    def __init__(self) -> None:
        self.confirm = asyncio.Event()
        self.settled: list[Delivery] = []
        self.calls = 0
        self.extended: list[tuple[float, int]] = []
        self.error: Exception | None = None

    async def quiesce(self) -> None: ...

    async def overdue(self) -> int | None:
        return None

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        self.calls += 1
        await self.confirm.wait()
        if self.error is not None:
            raise self.error
        self.settled += [*acknowledged, *(release.delivery for release in released)]

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        self.extended.append((asyncio.get_running_loop().time(), len(deliveries)))

    async def close(self) -> None: ...


class Owner:
    """What a pump does, without one."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    def arrived(self, inbox: ConsumerInbox, deliveries: Sequence[Delivery]) -> None:
        inbox.admit(deliveries)

    def settled(self) -> None: ...

    def make_room(self) -> None: ...

    async def lull(self, within: float) -> None: ...

    def drop_queued(self, which: Which) -> None:
        self._lanes.drop(which)

    async def let_go(self, inbox: ConsumerInbox, which: Which) -> None: ...

    def ailing(self, reason: str | None) -> None: ...


class Fixture:
    def __init__(self, count: int, keys: int | None = None) -> None:
        self.receiver = Receiver()
        self.ready: deque[Delivery] = deque()
        lanes = Lanes("key", self.ready)
        outcomes: Any = SimpleNamespace(handled=0, given_back=0, stopping=False)
        subscription = Subscription(topic="t", group="g")
        owner: Any = Owner(lanes)
        self.inbox = ConsumerInbox(subscription, owner, lanes, Window(1, lambda: 0), outcomes)
        self.inbox.receiver = self.receiver
        keys = keys or count
        self.deliveries = [Delivery(Message("t", str(n).encode(), b"k%d" % (n % keys))) for n in range(count)]
        assert not self.inbox.put(self.deliveries)
        self.settling = asyncio.create_task(self.inbox.settle())

    def handle(self, *deliveries: Delivery) -> None:
        """A worker begins with these."""
        for each in deliveries:
            self.ready.remove(each)
            each.state = State.HANDLING

    async def finish(self) -> None:
        self.receiver.confirm.set()
        self.inbox.finish()
        await self.settling


@virtual
async def test_settlements_that_come_meanwhile_go_together() -> None:
    fixture = Fixture(10)
    fixture.inbox.done(fixture.deliveries[0])
    await asyncio.sleep(1)
    for each in fixture.deliveries[1:]:
        fixture.inbox.done(each)
    await fixture.finish()
    assert fixture.receiver.calls == 2
    assert fixture.receiver.settled == fixture.deliveries
    assert not fixture.inbox.held


@virtual
async def test_what_is_on_its_way_back_is_not_given_back_again() -> None:
    fixture = Fixture(5)
    sending, waiting, released, busy, rest = fixture.deliveries
    fixture.inbox.done(sending)
    await asyncio.sleep(1)
    fixture.inbox.done(waiting)
    fixture.inbox.release(Release(released))
    fixture.handle(busy)
    fixture.inbox.release_unbegun()
    fixture.inbox.release_unbegun()
    await fixture.finish()
    assert fixture.receiver.settled == [sending, waiting, released, rest]
    assert list(fixture.inbox.held) == [busy]


@virtual
async def test_what_is_dropped_while_the_broker_is_told_of_it_makes_room_once() -> None:
    fixture = Fixture(4)
    for each in fixture.deliveries[:3]:
        fixture.inbox.done(each)
    await asyncio.sleep(1)
    assert (len(fixture.inbox.held), fixture.inbox.departed) == (4, 3)
    fixture.inbox.forget(lambda each: each in fixture.deliveries[:3])
    assert (len(fixture.inbox.held), fixture.inbox.departed) == (1, 0)
    await fixture.finish()


@virtual
async def test_what_was_dropped_is_settled_no_more() -> None:
    fixture = Fixture(4)
    acknowledged, released, busy, other = fixture.deliveries
    fixture.handle(busy)
    fixture.inbox.done(acknowledged)
    fixture.inbox.release(Release(released))
    fixture.inbox.forget(lambda each: each is not other)
    fixture.inbox.done(busy)  # its handler has just ended
    fixture.inbox.done(other)
    await fixture.finish()
    assert fixture.receiver.settled == [other]


@virtual
async def test_a_lane_is_unparked_only_once_its_release_is_confirmed() -> None:
    fixture = Fixture(1)
    again = Delivery(Message("t", b"again", b"k0"))
    fixture.inbox.park(Release(fixture.deliveries[0], 5.0, 2))
    await asyncio.sleep(1)
    fixture.inbox.unpark()
    fixture.inbox.put([again])
    assert again.state is State.SETTLING  # a stray: the broker still thinks that the lane is ours
    fixture.receiver.confirm.set()
    await fixture.inbox.calm()
    fixture.inbox.unpark()
    fixture.inbox.put([late := Delivery(Message("t", b"late", b"k0"))])
    assert late.state is State.READY
    await fixture.finish()


@virtual
async def test_a_connection_lost_while_settling_is_raised() -> None:
    fixture = Fixture(1)
    fixture.receiver.error = ConnectionLost("gone")
    fixture.inbox.done(fixture.deliveries[0])
    fixture.receiver.confirm.set()
    with pytest.raises(ConnectionLost):
        await fixture.settling
    assert list(fixture.inbox.held) == fixture.deliveries


@virtual
async def test_leases_are_extended_three_times_a_lease_of_all_that_is_here_but_what_is_on_its_way_back() -> (
    None
):
    fixture = Fixture(3, keys=1)
    extending = asyncio.create_task(keep_leases(fixture.receiver.extend, fixture.inbox.leased, 9.0))
    await asyncio.sleep(4)
    fixture.inbox.done(fixture.deliveries[0])  # not confirmed yet, and never to be renewed
    await asyncio.sleep(6)
    fixture.receiver.confirm.set()
    for each in fixture.deliveries[1:]:
        fixture.inbox.done(each)
    await asyncio.sleep(10)
    extending.cancel()
    assert fixture.receiver.extended == [(3, 3), (6, 2), (9, 2)]
    await fixture.finish()


@virtual
async def test_what_a_stop_leaves_behind_goes_back_and_is_extended_no_more() -> None:
    fixture = Fixture(2)
    ended, hanging = fixture.deliveries
    fixture.handle(ended, hanging)
    fixture.inbox.done(ended)
    fixture.inbox.release_all()
    assert fixture.inbox.leased() == []
    fixture.inbox.done(hanging)  # its handler ends after all
    await fixture.finish()
    assert fixture.receiver.settled == [ended, hanging]
    assert not fixture.inbox.held


@virtual
async def test_without_leases_nothing_is_extended() -> None:
    fixture = Fixture(1)
    await keep_leases(fixture.receiver.extend, fixture.inbox.leased, None)
    assert fixture.receiver.extended == []
    await fixture.finish()


@virtual
async def test_an_inbox_knows_its_oldest() -> None:
    fixture = Fixture(3)
    for since, each in zip((5.0, 2.0, 9.0), fixture.deliveries, strict=True):
        fixture.inbox.held[each] = since
    assert fixture.inbox.oldest() == 2.0
    fixture.inbox.held.clear()
    assert fixture.inbox.oldest() is None
    await fixture.finish()


@virtual
async def test_what_waits_behind_a_message_that_is_being_handled_goes_back_only_after_it() -> None:
    """Else another process would handle it beside that."""
    fixture = Fixture(4, keys=2)
    head, other, behind, behind_other = fixture.deliveries
    fixture.handle(head)
    fixture.receiver.confirm.set()
    fixture.inbox.release_unbegun()
    await asyncio.sleep(1)
    assert fixture.receiver.settled == [other, behind_other]
    fixture.inbox.done(head)
    fixture.inbox.release_unbegun()
    await asyncio.sleep(1)
    assert fixture.receiver.settled[2:] == [head, behind]
    await fixture.finish()


@virtual
async def test_what_comes_after_quiet_is_refused() -> None:
    fixture = Fixture(1)
    fixture.inbox.quiet()
    late = Delivery(Message("t", b"late"))
    assert fixture.inbox.put([late]) == [late]
    assert late not in fixture.inbox.held
    await fixture.finish()


@virtual
async def test_a_lost_inbox_lets_a_lane_go_on_when_its_handler_ends_and_settles_nothing() -> None:
    fixture = Fixture(3, keys=1)
    head, *_ = fixture.deliveries
    fixture.handle(head)
    fixture.inbox.lose()
    assert [each.state for each in fixture.deliveries] == [State.GONE, State.DONE, State.DONE]
    fixture.inbox.done(head)
    assert head.state is State.DONE
    await fixture.finish()
    assert fixture.receiver.settled == []
