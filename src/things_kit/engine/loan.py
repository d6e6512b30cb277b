"""What one receiver has lent us: every delivery from its arrival until the broker knows what became of it."""

import asyncio
from collections.abc import Callable, Container, Sequence
from datetime import UTC, datetime
from typing import Protocol

from things_kit.engine.driver import Capabilities, Delivery, Receiver, Release
from things_kit.engine.lanes import Lane, Lanes
from things_kit.engine.leases import keep_leases


class Borrower(Protocol):
    """Who receives: the source of a consumer."""

    def settled(self) -> None:
        """The broker has taken settlements."""


class Loan:
    """The deliveries of one receiver, and the settlements on their way back, collected into batches.

    A new connection means a new receiver and a new loan; what is still being handled for the old one is then
    settled with nobody, and comes again.
    """

    def __init__(
        self, receiver: Receiver, source: Borrower, lanes: Lanes, capabilities: Capabilities
    ) -> None:
        self.receiver = receiver
        self.source = source
        self.held: dict[Delivery, float] = {}
        self.lost = False
        self.last_settled: datetime | None = None
        self.last_progress = asyncio.get_running_loop().time()
        self.lanes = lanes
        self._lease = capabilities.lease
        self._acknowledged: list[Delivery] = []
        self._released: list[Release] = []
        self._sending: tuple[Sequence[Delivery], Sequence[Release]] = ((), ())
        self._parking: list[Lane] = []
        self._confirming: list[Lane] = []
        self._strays = 0  # on their way back in the next settlement
        self._calm = asyncio.Event()
        self._calm.set()
        self._unparked: list[Lane] = []
        self._due = asyncio.Event()
        self._closing = False
        self._dropped = False

    def owns(self, delivery: Delivery) -> bool:
        """Whether it is still ours to settle: the connection is the same, and it was not taken back."""
        return not self.lost and delivery in self.held

    def done(self, delivery: Delivery) -> None:
        """Acknowledge it, and let its lane go on."""
        if not self._acknowledged:
            self._due.set()
        self._acknowledged.append(delivery)
        self.lanes.advance(delivery)

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge what never entered a lane."""
        self._acknowledged.append(delivery)
        self._due.set()

    def release(self, release: Release) -> None:
        """Give it back."""
        self._released.append(release)
        self._due.set()

    def send_back(self, strays: Sequence[Delivery]) -> None:
        """Give back what arrived of a parked lane. Until `calm` returns, the broker still thinks the lane is ours."""
        for stray in strays:
            self.release(Release(stray, attempt=stray.message.attempt))
        if strays:
            self._strays += len(strays)
            self._calm.clear()

    async def calm(self) -> None:
        """Wait until the broker has taken back all strays; asked before, it would hand out what comes after them."""
        await self._calm.wait()

    def park(self, head: Release) -> None:
        """Give the head of a lane back, and all that is queued behind it."""
        behind = self.lanes.park(head.delivery)
        self.release(head)
        self._released.extend(Release(delivery, attempt=delivery.message.attempt) for delivery in behind)
        self._parking.append(self.lanes.lane_of(head.delivery))

    @property
    def parked(self) -> list[Lane]:
        """All lanes that wait for the broker to confirm their release, or for the next call to receive."""
        return [*self._parking, *self._confirming, *self._unparked]

    def take_unparked(self) -> list[Lane]:
        """The lanes whose release the broker has confirmed since the last call."""
        lanes, self._unparked = self._unparked, []
        return lanes

    def leaving(self) -> set[Delivery]:
        """What is on its way back to the broker."""
        acknowledged, released = self._sending
        return {*self._acknowledged, *acknowledged, *(r.delivery for r in (*self._released, *released))}

    def release_all_but(self, busy: Container[Delivery]) -> None:
        """Give back all that is neither busy nor on its way back already; it was never begun, so nothing counts."""
        leaving = self.leaving()
        for delivery in self.held:
            if delivery not in busy and delivery not in leaving:
                self.release(Release(delivery, attempt=delivery.message.attempt))

    def drop(self, which: Callable[[Delivery], bool]) -> None:
        """These belong to somebody else now: settle nothing of them."""
        for delivery in [delivery for delivery in self.held if which(delivery)]:
            del self.held[delivery]
            self._dropped = True
        self._acknowledged = [delivery for delivery in self._acknowledged if not which(delivery)]
        self._released = [release for release in self._released if not which(release.delivery)]

    async def settle(self) -> None:
        """Settle what comes, until `finish` was called and nothing is left. Raises ConnectionLost."""
        while not self._closing or self._acknowledged or self._released:
            if not (self._acknowledged or self._released):
                self._due.clear()
                await self._due.wait()
                continue
            acknowledged, self._acknowledged = self._acknowledged, []
            released, self._released = self._released, []
            self._confirming, self._parking = self._parking, []
            self._strays = 0
            if self._dropped:
                acknowledged = [delivery for delivery in acknowledged if delivery in self.held]
                released = [release for release in released if release.delivery in self.held]
            self._sending = acknowledged, released
            await self.receiver.settle(acknowledged, released)
            self._sending = (), ()
            for delivery in acknowledged:
                self.held.pop(delivery, None)
            for release in released:
                self.held.pop(release.delivery, None)
            self._unparked += self._confirming
            self._confirming = []
            if not self._strays:
                self._calm.set()
            self.last_settled = datetime.now(UTC)
            self.last_progress = asyncio.get_running_loop().time()
            self.source.settled()

    async def extend(self) -> None:
        """Keep the leases of all that is held, until cancelled. Raises ConnectionLost."""
        await keep_leases(self.receiver, self.held.keys, self._lease)

    def finish(self) -> None:
        """Let `settle` return once all is settled."""
        self._closing = True
        self._due.set()

    def oldest(self) -> float | None:
        """When the oldest delivery came, in the loop's time; None if nothing is held."""
        return min(self.held.values(), default=None) if self.held else None
