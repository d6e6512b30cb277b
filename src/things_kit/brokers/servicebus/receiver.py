"""Receiving from a subscription, or a queue."""

import asyncio
from collections.abc import Sequence
from typing import Final

from things_kit.brokers.servicebus.admin import Admin
from things_kit.brokers.servicebus.amqp.connection import AmqpError
from things_kit.brokers.servicebus.client import Client
from things_kit.brokers.servicebus.errors import ERRORS
from things_kit.brokers.servicebus.inflow import MOST, Inflow, Locks, Token, lost, settle
from things_kit.engine.driver import Delivery, Release, Subscription

AT_ONCE: Final = 100
"""Messages whose locks one request renews."""


class LinkReceiver:
    """A subscription, or a queue."""

    def __init__(self, client: Client, admin: Admin, subscription: Subscription, entity: str) -> None:
        self._client = client
        self._admin = admin
        self._subscription = subscription
        self._entity = entity
        self._doing = f"receiving from {subscription.topic!r}"
        self._inflow = Inflow(subscription)
        self._locks = Locks(client, entity)
        self._window = 0
        self._closing = False

    async def open(self) -> None:
        """Open the link. Raises ConnectionLost, ConfigError."""
        with ERRORS.during(self._doing):
            await self._inflow.open(self._client, self._entity)
            if not self._subscription.create:
                await self._inflow.stays()
        self._inflow.link.ended.add_done_callback(self._ended)

    def _ended(self, ended: asyncio.Future[AmqpError]) -> None:
        if not self._closing:
            self._subscription.inbox.fail(lost(ended.result(), self._doing))

    def credit(self, window: int) -> None:
        """So many may be here that are not settled."""
        self._window = window
        self._inflow.ask(window - len(self._inflow.held))

    async def quiesce(self) -> None:
        """Use up the credit."""
        self._window = 0
        await self._inflow.drain()

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Complete, or give back."""
        await settle(
            self._client, f"settling messages of {self._subscription.topic!r}", acknowledged, released
        )
        self._inflow.ask(self._window - len(self._inflow.held))

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Lock them for longer."""
        tokens = [delivery.token for delivery in deliveries]
        missing: set[Token] = set()
        try:
            for start in range(0, len(tokens), AT_ONCE):
                missing.update(await self._locks.renew_messages(tokens[start : start + AT_ONCE]))
        except (AmqpError, OSError) as error:
            raise lost(error, f"renewing locks of {self._subscription.topic!r}") from error
        if missing:
            self._subscription.inbox.forget(lambda delivery: delivery.token in missing)
            for token in missing:
                self._inflow.settled(token)

    async def overdue(self) -> int | None:
        """The service counts what waits and what others hold together; so this only says again what is asked for."""
        self._inflow.link.ask(max(0, min(self._window - len(self._inflow.held), MOST)))
        return None

    async def close(self) -> None:
        """Close the link, and remove an ephemeral group."""
        self._closing = True
        self._locks.close()
        await asyncio.gather(self._inflow.close(), self._admin.remove_ephemeral(self._subscription))
