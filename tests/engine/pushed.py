"""A broker that pushes, made of one that is asked: it fetches by itself, as much as it was given credit for."""

import asyncio
from collections.abc import Sequence

import msgspec

from things_kit.engine.driver import Capabilities, Delivery, Inbox, Release, Subscription
from things_kit.testing.stub import StubDriver, StubReceiver


class Counting:
    """Passes on what arrives, and counts what is out."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.out = 0
        self.refused: list[Delivery] = []
        self.let_go, self.forget, self.ailing, self.fail = (
            inbox.let_go,
            inbox.forget,
            inbox.ailing,
            inbox.fail,
        )

    def put(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        refused = self.inbox.put(deliveries)
        self.out += len(deliveries) - len(refused)
        self.refused += refused
        return ()


class PushedReceiver:
    """Has no `fetch`: whoever has it says how much may be out, in `told`."""

    def __init__(self, inner: StubReceiver, inbox: Counting) -> None:
        self.inner = inner
        self.inbox = inbox
        self.told: list[tuple[float, int]] = []
        self._changed = asyncio.Event()
        self._pushing = asyncio.create_task(self._push(), name="pushing")

    def credit(self, window: int) -> None:
        self.told.append((asyncio.get_running_loop().time(), window))
        self._changed.set()

    async def _push(self) -> None:
        while True:
            room = self.told[-1][1] - self.inbox.out if self.told else 0
            self._changed.clear()
            if room > 0:
                await self.inner.fetch(room, 0.05)
            else:
                await self._changed.wait()

    async def quiesce(self) -> None:
        self._pushing.cancel()
        await asyncio.wait({self._pushing})
        await self.inner.quiesce()

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        await self.inner.settle(acknowledged, released)
        self.inbox.out -= len(acknowledged) + len(released)
        self._changed.set()

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        await self.inner.extend(deliveries)

    async def overdue(self) -> int | None:
        return await self.inner.overdue()

    async def close(self) -> None:
        self._pushing.cancel()
        await asyncio.wait({self._pushing})
        await self.inner.close()


class PushingDriver(StubDriver):
    """`receivers` are those that there were, in order."""

    def __init__(self, *, fixed_credit: bool = False) -> None:
        super().__init__(Capabilities(delay=True, attempts=True, fixed_credit=fixed_credit))
        self.receivers: list[PushedReceiver] = []

    async def subscribe(self, subscription: Subscription) -> PushedReceiver:  # type: ignore[override]
        inbox = Counting(subscription.inbox)
        inner = await super().subscribe(msgspec.structs.replace(subscription, inbox=inbox))
        self.receivers.append(PushedReceiver(inner, inbox))
        return self.receivers[-1]

    @property
    def told(self) -> list[int]:
        """What the last receiver was given credit for, one after another."""
        return [window for _, window in self.receivers[-1].told]
