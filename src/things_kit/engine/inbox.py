"""All that one receiver has brought: every delivery from its arrival until the broker knows what became of it."""

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Final

import msgspec

from things_kit.engine.driver import Delivery, Receiver, Release, Subscription, Which
from things_kit.engine.lanes import Lane, Lanes
from things_kit.engine.state import GONE, SETTLING, State
from things_kit.engine.window import Window

if TYPE_CHECKING:
    from things_kit.engine.outcomes import Outcomes
    from things_kit.engine.pump import Pump

BEGUN: Final = frozenset({State.HANDLING, State.LEAVING, State.GATHERED})
"""States in which a lane waits for what somebody has in hand."""

UNBEGUN: Final = frozenset({State.READY, State.QUEUED, State.BACKING_OFF, State.ASIDE})
"""States in which a delivery can go back, or be dropped, as nobody works on it."""

ON_ITS_WAY_BACK: Final = frozenset({State.SETTLING, State.GONE})
"""States of what is held no longer than until the broker has confirmed its settlement."""

GATHER: Final = 1 / 8
"""Of what the last settlement took, the part for which the next call waits: few of them come back in a second from afar."""

GATHERED: Final = (0.001, 0.05)
"""Seconds of that: less is not worth a timer, and more would be felt."""


class ConsumerInbox:
    """The deliveries of one receiver, and the settlements on their way back, collected into batches.

    A new connection means a new receiver and a new inbox; what is still being handled for the old one is then settled
    with nobody, and comes again.
    """

    departed: int
    """How many of those held are acknowledged, and the broker is being told so: it learns of that before anything asked later."""

    receiver: Receiver
    """What brings the deliveries; set once it is subscribed."""

    def __init__(
        self, subscription: Subscription, owner: "Pump", lanes: Lanes, window: Window, outcomes: "Outcomes"
    ) -> None:
        self.subscription = msgspec.structs.replace(subscription, inbox=self)
        self.held: dict[Delivery, float] = {}
        self.lanes = lanes
        self.outcomes = outcomes
        self.last_progress = self.last_arrival = asyncio.get_running_loop().time()
        self.brought = 0
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner: Pump | None = owner  # until the consumer has stopped
        self._window = window
        self._acknowledged: list[Delivery] = []
        self._released: list[Release] = []
        self._parking: list[Lane] = []
        self._confirming: list[Lane] = []
        self._unparked: list[Lane] = []
        self.departed = 0
        self._took = 0.0
        self._strays = 0  # on their way back in the next settlement
        self._calm = asyncio.Event()
        self._calm.set()
        self._due = asyncio.Event()
        self._telling = False  # whether a settlement is on its way
        self._told = asyncio.Event()
        self._quiet = False
        self._closing = False

    # --- what drivers call

    def put(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """See `Inbox.put`."""
        if self._quiet or self._owner is None:
            return deliveries
        if deliveries:
            now = self.last_arrival = asyncio.get_running_loop().time()
            self.brought += len(deliveries)
            self.held.update(dict.fromkeys(deliveries, now))
            self._owner.arrived(self, deliveries)
        return ()

    async def let_go(self, which: Which) -> None:
        """See `Inbox.let_go`."""
        if self._owner is not None:
            await self._owner.let_go(self, which)

    def forget(self, which: Which) -> None:
        """See `Inbox.forget`."""
        dropped = [delivery for delivery in self.held if which(delivery)]
        if not dropped or self._owner is None:
            return
        self._drop_unbegun(dropped)
        for delivery in dropped:
            del self.held[delivery]
            if delivery.state in BEGUN:
                delivery.state = State.GONE
            elif delivery.state is not State.GONE:
                delivery.state = State.DONE
        self._acknowledged = [delivery for delivery in self._acknowledged if delivery in self.held]
        self._released = [release for release in self._released if release.delivery in self.held]
        self.departed = 0  # which of those are gone from here too is not worth to find out
        self._owner.make_room()

    def ailing(self, reason: str | None) -> None:
        """See `Inbox.ailing`."""
        if self._owner is not None:
            self._owner.ailing(reason)

    def fail(self, error: Exception) -> None:
        """See `Inbox.fail`."""
        if not self.failure.done():
            self.failure.set_exception(error)
            self.failure.exception()  # it need not be asked for

    # --- what becomes of deliveries

    def admit(self, deliveries: Sequence[Delivery]) -> None:
        """Let them take their turns; what belongs to a parked lane goes back."""
        self.send_back(self.lanes.admit(deliveries, self))

    def admit_again(self, delivery: Delivery) -> None:
        """What waited here takes its turn as if it had just come."""
        delivery.due = None
        if self._owner is not None:
            self._owner.arrived(self, [delivery])

    def send_back(self, strays: Sequence[Delivery]) -> None:
        """Give back what arrived of a parked lane. Until `calm` returns, the broker still thinks the lane is ours."""
        for stray in strays:
            self.release(Release(stray, attempt=stray.message.attempt))
        if strays:
            self._strays += len(strays)
            self._calm.clear()

    def done(self, delivery: Delivery) -> None:
        """Acknowledge it, and let its lane go on."""
        if delivery.state is GONE:
            delivery.state = State.DONE
        else:
            delivery.state = SETTLING
            acknowledged = self._acknowledged
            if not acknowledged:
                self._due.set()
            acknowledged.append(delivery)
        self.lanes.advance(delivery)

    def left(self, delivery: Delivery) -> None:
        """Its dead letter, or a copy of it, is confirmed: acknowledge it."""
        if delivery.state in {State.LEAVING, State.GONE}:
            self.done(delivery)
        else:
            self.acknowledge(delivery)

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge what no lane waits for."""
        if delivery.state is not State.DONE:
            delivery.state = State.SETTLING
            self._acknowledged.append(delivery)
            self._due.set()

    def release(self, release: Release) -> None:
        """Give it back. No lane goes on by it."""
        if release.delivery.state not in {State.GONE, State.DONE}:
            release.delivery.state = State.SETTLING
            self._released.append(release)
            self._due.set()

    def park(self, head: Release) -> None:
        """Give the head of a lane back, and all that waits behind it."""
        behind = self.lanes.park(head.delivery)
        self.release(head)
        for delivery in behind:
            self.release(Release(delivery, attempt=delivery.message.attempt))
        self._parking.append(self.lanes.lane_of(head.delivery))

    async def calm(self) -> None:
        """Wait until the broker has taken back all strays; asked before, it would hand out what comes after them."""
        await self._calm.wait()

    def unpark(self) -> None:
        """Open the lanes whose release the broker has confirmed: what it hands out from now on is in its order."""
        lanes, self._unparked = self._unparked, []
        self.lanes.unpark(lanes)

    def lose(self) -> None:
        """The connection is gone, and all of this with it: it comes again over the next."""
        self._quiet = True
        self.forget(lambda _: True)
        self._told.set()
        self.lanes.unpark([*self._parking, *self._confirming, *self._unparked])

    # --- giving back

    def quiet(self) -> None:
        """Take nothing more."""
        self._quiet = True

    def release_unbegun(self, *, queued: bool = False) -> None:
        """Give back, in the order of arrival, what was not begun: nobody's failure, so nothing counts.

        What waits behind a message that is being handled stays until that is done, unless `queued` is set: another
        process would handle it beside that.
        """
        ready = {State.READY, State.BACKING_OFF, State.ASIDE} | ({State.QUEUED} if queued else set())
        begun = {self.lanes.lane_of(delivery) for delivery in self.held if delivery.state in BEGUN} - {None}
        going = [
            delivery
            for delivery in self.held
            if (delivery.state in ready and not delivery.suspect)  # see Suspects.take_back
            or (delivery.state is State.QUEUED and self.lanes.lane_of(delivery) not in begun)
        ]
        self._drop_unbegun(going)
        for delivery in going:
            self.release(Release(delivery, attempt=delivery.message.attempt))

    def release_all(self) -> None:
        """Give back whatever is left. What was begun is not ours to end any more: it comes again."""
        self.release_unbegun(queued=True)
        for delivery in list(self.held):
            if delivery.state is not State.SETTLING:
                self.release(Release(delivery, attempt=delivery.message.attempt))
                delivery.state = State.GONE  # whatever its handler still answers comes too late

    def _drop_unbegun(self, deliveries: Sequence[Delivery]) -> None:
        """Take these out of lanes and delays."""
        gone = {delivery for delivery in deliveries if delivery.state in UNBEGUN}
        if gone and self._owner is not None:
            self._owner.drop_queued(gone.__contains__)

    # --- settling

    async def settle(self) -> None:
        """Settle what comes, until `finish` was called and nothing is left. Raises ConnectionLost."""
        while not self._closing or self._acknowledged or self._released:
            if not (self._acknowledged or self._released):
                self._due.clear()
                await self._due.wait()
                continue
            await self._gather()
            await self._settle_once(self.receiver)

    @property
    def patience(self) -> float:
        """Seconds for which a call to the broker may wait so that it is about more; 0 where the broker is near."""
        least, most = GATHERED
        patience = GATHER * self._took
        return 0.0 if patience < least else min(most, patience)

    @property
    def unsaid(self) -> bool:
        """Whether there is anything to settle that is not under way."""
        return bool(self._acknowledged)

    async def _gather(self) -> None:
        if self.patience and not self._closing and self._owner is not None:
            await self._owner.lull(self.patience)

    async def _settle_once(self, receiver: Receiver) -> None:
        acknowledged, self._acknowledged = self._acknowledged, []
        released, self._released = self._released, []
        self._confirming, self._parking = self._parking, []
        self._strays = 0
        self._window.finished += len(acknowledged) + len(released)
        self._telling, outcomes = True, self.outcomes
        began = asyncio.get_running_loop().time()
        self.departed = len(acknowledged)
        if self._owner is not None and acknowledged:
            self._owner.make_room()  # to a broker that is far off, the next question goes beside this
        try:
            await receiver.settle(acknowledged, released)
        finally:
            self._telling = False
            self.departed = 0
            self._told.set()
        held = self.held
        outcomes.handled += len(acknowledged)
        if outcomes.stopping:
            outcomes.given_back += sum(each.attempt == each.delivery.message.attempt for each in released)
        deque(map(held.pop, acknowledged, repeat(None)), maxlen=0)  # the fastest loop there is
        for release in released:
            held.pop(release.delivery, None)
        self._unparked += self._confirming
        self._confirming = []
        if not self._strays:
            self._calm.set()
        self.last_progress = asyncio.get_running_loop().time()
        self._took = self.last_progress - began
        if self._owner is not None:
            self._owner.settled()

    async def all_told(self) -> None:
        """Wait until the broker knows of all that was finished so far, or the connection is lost."""
        while self._acknowledged or self._released or self._telling:
            self._told.clear()
            await self._told.wait()

    def finish(self) -> None:
        """Let `settle` return once all is settled."""
        self._closing = True
        self._due.set()

    def dispose(self) -> None:
        """The consumer has stopped, and nothing asks for these any more.

        A delivery is no business of the garbage collector's, which makes it cheap. So it must not be part of a cycle when
        it is the last that somebody keeps of a consumer, such as in the frames of an exception.
        """
        self.held.clear()
        self._acknowledged.clear()
        self._released.clear()
        self.subscription = msgspec.structs.replace(self.subscription, inbox=None)
        self._quiet, self._owner = True, None  # a driver's thread may have something to say still
        for name in ("_window", "outcomes", "lanes", "receiver"):
            self.__dict__.pop(name, None)

    def leased(self) -> list[Delivery]:
        """What is to stay ours: all that is here but what is on its way back."""
        return [delivery for delivery in self.held if delivery.state not in ON_ITS_WAY_BACK]

    def oldest(self) -> float | None:
        """When the oldest delivery came, in the loop's time; None if nothing is held."""
        return min(self.held.values(), default=None) if self.held else None
