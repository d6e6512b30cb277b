"""Receiving over one link: what arrives is read at once, and handed out in batches."""

import asyncio
from collections.abc import Sequence
from typing import Final

from azure.servicebus import ServiceBusReceivedMessage

from things_kit.brokers.servicebus.admin import Admin, remove_ephemeral
from things_kit.brokers.servicebus.errors import translated
from things_kit.brokers.servicebus.hand import Hand
from things_kit.brokers.servicebus.incoming import Incoming
from things_kit.brokers.servicebus.links import Links
from things_kit.brokers.servicebus.names import entity_of, subscription_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.publisher import Publisher
from things_kit.brokers.servicebus.settlement import Settlement
from things_kit.engine.driver import Delivery, Release, Subscription

CREDIT: Final = 500
"""The most messages that a link is asked for at a time."""

ANSWER: Final = 0.3
"""Seconds within which the service says that there is no such subscription."""


class LinkReceiver:
    """A subscription, or a queue, over one link.

    The link is asked for no more than the engine has room for, less what is here already: what it brings is locked, and the
    rest is left to others.
    """

    def __init__(
        self, settings: Settings, links: Links, admin: Admin, publisher: Publisher, subscription: Subscription
    ) -> None:
        self._links = links
        self._admin = admin
        self._subscription = subscription
        self._settlement = Settlement(settings, publisher, subscription)
        self._group = subscription_of(subscription.group)
        self._most = subscription.max_in_flight
        self._hand = Hand(self._settlement, subscription)
        self._link: Incoming | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closing = False

    async def open(self) -> None:
        """Open the link. Raises ConnectionLost, ConfigError."""
        self._link = link = await self._links.receiver(
            entity_of(self._subscription.topic), self._group, self._arrived
        )
        if not self._subscription.create:
            # A link to what does not exist may open, and is closed by the service right after that
            await asyncio.wait({link.ended}, timeout=ANSWER)
            if link.trouble is not None:
                await link.close()
                raise translated(
                    link.trouble, f"receiving from {self._subscription.topic!r}"
                ) from link.trouble
        await self._ask(link)
        self._watching = asyncio.create_task(self._watch(link), name="things_kit servicebus receiver")

    async def _watch(self, link: Incoming) -> None:
        trouble = await asyncio.shield(link.ended)
        failure = translated(trouble, f"receiving from {self._subscription.topic!r}")
        failure.__cause__ = trouble
        self._hand.fail(failure)

    async def _arrived(self, link: Incoming, received: ServiceBusReceivedMessage) -> None:
        await self._hand.put(link, received)
        await self._ask(link)

    async def _ask(self, link: Incoming) -> None:
        """Ask for more, but not for a few while many are on their way."""
        room = min(CREDIT, self._most - self._hand.count)
        missing = room - link.credit
        if not self._closing and missing > 0 and (link.credit <= 0 or 4 * missing >= min(CREDIT, self._most)):
            await link.ask(room)

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """What has arrived, after at most `wait` seconds."""
        return await self._hand.take(limit, wait)

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Complete, give back or copy; once begun it goes on, also if nobody waits for it any more."""
        await self._hand.settle(acknowledged, released)
        if self._link is not None:
            await self._ask(self._link)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Lock for longer what is held, and what is still here."""
        held = [delivery.token for delivery in deliveries]
        lost = set(await self._settlement.extend([*held, *self._hand.waiting]))
        if lost:
            self._hand.forget(lost.__contains__)
            self._subscription.forget(lambda delivery: delivery.token in lost)

    async def close(self) -> None:
        """Give back what was not settled, close the link, and remove an ephemeral group."""
        self._closing = True
        if self._link is not None:
            await self._link.drain()
            await self._hand.give_back()
            await self._link.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await remove_ephemeral(self._admin, self._subscription)
