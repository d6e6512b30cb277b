"""An inbox for who reads a topic without a consumer: replay, the command line, and tests of drivers."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec

from things_kit.engine.driver import (
    Delivery,
    Driver,
    Fetching,
    Pushed,
    Receiver,
    Subscription,
    Which,
)


class Collected:
    """Keeps what arrives `waiting` until somebody takes it, and then releases or acknowledges it."""

    def __init__(self) -> None:
        self.waiting: list[Delivery] = []
        self._news = asyncio.Event()
        self._failure: Exception | None = None

    def put(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """See `Inbox.put`."""
        self.waiting.extend(deliveries)
        self._news.set()
        return ()

    async def let_go(self, which: Which) -> None:
        """See `Inbox.let_go`."""
        self.forget(which)

    def forget(self, which: Which) -> None:
        """See `Inbox.forget`."""
        self.waiting = [delivery for delivery in self.waiting if not which(delivery)]

    def ailing(self, reason: str | None) -> None:
        """Whoever reads sees for himself that nothing comes."""

    def fail(self, error: Exception) -> None:
        """See `Inbox.fail`."""
        self._failure = error
        self._news.set()

    async def arrival(self, wait: float) -> None:
        """Wait for something to arrive, for so many seconds. Raises what `fail` was told, once all is taken."""
        if not self.waiting and self._failure is None and wait > 0:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()
        if not self.waiting and self._failure is not None:
            raise self._failure

    def take(self, limit: int) -> list[Delivery]:
        """Up to `limit` of what has arrived."""
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return taken


class Collecting:
    """A receiver with an inbox of its own: what it brings is returned by `receive`."""

    def __init__(self, receiver: Receiver, inbox: Collected) -> None:
        self.inbox = inbox
        self.receiver = receiver
        self._unsettled = 0

    async def receive(self, limit: int, wait: float) -> list[Delivery]:
        """Up to `limit` messages, in order; none if none came within `wait` seconds. Raises ConnectionLost."""
        if not self.inbox.waiting and isinstance(self.receiver, Fetching):
            await self.receiver.fetch(limit, wait)
        elif isinstance(self.receiver, Pushed):
            self.receiver.credit(self._unsettled + limit)
            await self.inbox.arrival(wait)
        taken = self.inbox.take(limit)
        self._unsettled += len(taken)
        return taken

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Any]) -> None:
        """See `Receiver.settle`."""
        await self.receiver.settle(acknowledged, released)
        self._unsettled -= len(acknowledged) + len(released)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Renew the leases of these, and of what was not taken yet."""
        await self.receiver.extend([*deliveries, *self.inbox.waiting])

    async def close(self) -> None:
        """See `Receiver.close`; what was not taken goes back with it, behind what was, in one order."""
        try:
            await self.receiver.quiesce()
        finally:
            await self.receiver.close()


async def collect(driver: Driver, subscription: Subscription) -> Collecting:
    """Subscribe without a consumer. Raises what `Driver.subscribe` does."""
    inbox = Collected()
    return Collecting(await driver.subscribe(msgspec.structs.replace(subscription, inbox=inbox)), inbox)
