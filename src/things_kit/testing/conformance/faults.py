"""A driver in front of the driver under test, through which a test can lose its connection or break it."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

import msgspec

from things_kit.engine.driver import (
    ConnectionLost,
    Delivery,
    Driver,
    Fetching,
    Inbox,
    Later,
    Marking,
    Pushed,
    Receiver,
    Release,
    SendsLater,
    Subscription,
)
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message


class FaultyDriver:
    """Passes every call on, until told otherwise.

    Attributes:
        lost_answers: So many sends reach the broker, but their answer is lost with the connection.
        lost_settlements: So many settlements reach the broker, but their answer is lost with the connection.
        broken: What every `receive` and `send` raises instead, as a driver with a fault of its own would.
        latency: Up to so many seconds pass before what is sent or settled reaches the broker, and before the answer
            is back.
        subscribed: How many receivers are open.
    """

    def __init__(self, inner: Driver) -> None:
        self.capabilities = inner.capabilities
        self.lost_answers = 0
        self.lost_settlements = 0
        self.broken: Exception | None = None
        self.latency = 0.0
        self._inner = inner
        self._away = False
        self._opening = asyncio.Event()
        self._opening.set()
        self._receivers: set[FaultyReceiver] = set()
        if isinstance(inner, SendsLater):
            self.send_later = self._later(inner)

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """Never called: it is made around a driver that exists."""
        raise ConfigError(f"{url.display} cannot be opened as a faulty driver")

    @property
    def subscribed(self) -> int:
        """How many receivers are open."""
        return len(self._receivers)

    def cut(self) -> None:
        """Lose every connection there is at this moment; new ones work."""
        for receiver in self._receivers:
            receiver.cut()

    async def go_deaf(self) -> None:
        """Let the receivers that there are hear nothing more, without an error; those opened later do."""
        for receiver in list(self._receivers):
            await receiver.go_deaf()

    def hold_subscriptions(self) -> asyncio.Event:
        """Let no receiver be opened before the event is set."""
        self._opening = asyncio.Event()
        return self._opening

    def go_away(self) -> None:
        """Lose every connection, and let no new one be made."""
        self._away = True
        self.cut()

    def come_back(self) -> None:
        """Let new connections be made."""
        self._away = False

    def check(self) -> None:
        """Raises ConnectionLost while the broker is away."""
        if self._away:
            raise ConnectionLost("the broker is away, as the test wanted")

    async def travel(self) -> None:
        """Let a request, or its answer, take its time."""
        if self.latency:
            await asyncio.sleep(self.latency * random.random())  # noqa: S311 - any time will do

    def closed(self, receiver: "FaultyReceiver") -> None:
        """A receiver is no more."""
        self._receivers.discard(receiver)

    async def open(self) -> None:
        """As the driver does."""
        self.check()
        await self._inner.open()

    async def close(self) -> None:
        """As the driver does; also while the broker is away."""
        await self._inner.close()

    async def ping(self) -> None:
        """As the driver does."""
        self.check()
        await self._inner.ping()

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """As the driver does."""
        self.check()
        await self._inner.declare(topic, groups)

    async def remove(self, topic: str, group: str | None = None) -> None:
        """As the driver does."""
        self.check()
        await self._inner.remove(topic, group)

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """As the driver does, or not."""
        self.check()
        if self.broken is not None:
            raise self.broken
        await self.travel()
        results = await self._inner.send(messages)
        await self.travel()
        if self.lost_answers > 0:
            self.lost_answers -= 1
            raise ConnectionLost("the answer was lost, as the test wanted")
        return results

    def _later(self, inner: SendsLater) -> Callable[[Sequence[Later]], Awaitable[Sequence[Exception | None]]]:
        async def send_later(copies: Sequence[Later]) -> Sequence[Exception | None]:
            self.check()
            return await inner.send_later(copies)

        return send_later

    async def subscribe(self, subscription: Subscription) -> Receiver:
        """As the driver does; the receiver can be lost."""
        self.check()
        await self._opening.wait()
        inbox = FaultyInbox(subscription.inbox, self)
        receiver = await self._inner.subscribe(msgspec.structs.replace(subscription, inbox=inbox))
        kind = FaultyFetching if isinstance(receiver, Fetching) else FaultyPushed
        faulty = kind(self, receiver, inbox)
        self._receivers.add(faulty)
        return faulty

    async def lag(self, topic: str, group: str) -> int | None:
        """As the driver does."""
        self.check()
        return await self._inner.lag(topic, group)


class FaultyInbox:
    """Passes on what arrives, until the connection is lost or the driver is broken."""

    def __init__(self, inbox: Inbox, driver: FaultyDriver) -> None:
        self.lost = asyncio.Event()
        self.let_go = inbox.let_go
        self.forget = inbox.forget
        self.ailing = inbox.ailing
        self.fail = inbox.fail
        self._inbox = inbox
        self._driver = driver

    def put(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """As the engine does; nothing arrives over a lost connection, or in a broken driver."""
        if self._driver.broken is not None:
            self.fail(self._driver.broken)
            return deliveries
        return deliveries if self.lost.is_set() else self._inbox.put(deliveries)


class FaultyReceiver:
    """Passes every call on, until its connection is lost."""

    def __init__(self, driver: FaultyDriver, inner: Receiver, inbox: FaultyInbox) -> None:
        self._driver = driver
        self._inner = inner
        self._inbox = inbox
        if isinstance(inner, Marking):
            self.mark = inner.mark

    def cut(self) -> None:
        """Lose the connection."""
        self._inbox.lost.set()

    async def go_deaf(self) -> None:
        """Hear nothing more, without an error; what has been asked for is withdrawn when this returns."""

    def _check(self) -> None:
        if self._inbox.lost.is_set():
            raise _cut()

    async def quiesce(self) -> None:
        """As the receiver does."""
        self._check()
        await self._inner.quiesce()

    async def overdue(self) -> int | None:
        """As the receiver does."""
        self._check()
        return await self._inner.overdue()

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """As the receiver does, or not."""
        self._check()
        await self._driver.travel()
        await self._inner.settle(acknowledged, released)
        await self._driver.travel()
        if self._driver.lost_settlements > 0:
            self._driver.lost_settlements -= 1
            self.cut()
            self._check()

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """As the receiver does."""
        self._check()
        await self._inner.extend(deliveries)

    async def close(self) -> None:
        """As the receiver does."""
        self._driver.closed(self)
        await self._inner.close()


class FaultyFetching(FaultyReceiver):
    """In front of a receiver that asks for messages."""

    def __init__(self, driver: FaultyDriver, inner: Receiver, inbox: FaultyInbox) -> None:
        super().__init__(driver, inner, inbox)
        self._deaf = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None

    async def go_deaf(self) -> None:
        """Ask the broker for nothing more, and say nothing of it."""
        self._deaf.set()
        if self._asking is not None:
            await asyncio.wait({self._asking})
        await self._inner.quiesce()  # what was asked for may still be at the broker

    async def fetch(self, limit: int, wait: float) -> None:
        """As the receiver does, or until the connection is lost."""
        self._check()
        if self._driver.broken is not None:
            raise self._driver.broken
        fetching = asyncio.ensure_future(self._fetch(limit, wait))
        losing = asyncio.ensure_future(self._inbox.lost.wait())
        try:
            await asyncio.wait({fetching, losing}, return_when=asyncio.FIRST_COMPLETED)
            self._check()
            await fetching
        finally:
            for task in (fetching, losing):
                task.cancel()
            await asyncio.gather(fetching, losing, return_exceptions=True)

    async def _fetch(self, limit: int, wait: float) -> None:
        assert isinstance(self._inner, Fetching)
        if self._deaf.is_set():
            await asyncio.sleep(wait)
            return
        fetching = self._asking = asyncio.ensure_future(self._inner.fetch(limit, wait))
        deafening = asyncio.ensure_future(self._deaf.wait())
        try:
            await asyncio.wait({fetching, deafening}, return_when=asyncio.FIRST_COMPLETED)
            if fetching.done():
                await fetching
        finally:
            for task in (fetching, deafening):
                task.cancel()
            await asyncio.gather(fetching, deafening, return_exceptions=True)


class FaultyPushed(FaultyReceiver):
    """In front of a receiver that is pushed to."""

    def __init__(self, driver: FaultyDriver, inner: Receiver, inbox: FaultyInbox) -> None:
        super().__init__(driver, inner, inbox)
        self._deaf = False

    async def go_deaf(self) -> None:
        """Withdraw the credit, and say nothing of it."""
        self._deaf = True
        await self._inner.quiesce()

    def cut(self) -> None:
        """Lose the connection: nobody asks, so it has to be told."""
        super().cut()
        self._inbox.fail(_cut())

    def credit(self, window: int) -> None:
        """As the receiver does."""
        assert isinstance(self._inner, Pushed)
        if not self._deaf and not self._inbox.lost.is_set():
            self._inner.credit(window)


def _cut() -> ConnectionLost:
    return ConnectionLost("the connection was cut, as the test wanted")
