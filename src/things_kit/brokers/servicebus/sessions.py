"""Receiving from sessions: several at once, each the consumer's own until it has been empty for a moment."""

import asyncio
from collections.abc import Sequence
from typing import Final

from azure.servicebus import NEXT_AVAILABLE_SESSION
from azure.servicebus.aio import ServiceBusReceiver
from azure.servicebus.exceptions import OperationTimeoutError, SessionCannotBeLockedError

from things_kit.brokers.servicebus.admin import Admin, remove_ephemeral
from things_kit.brokers.servicebus.errors import CLIENT, GONE, translated
from things_kit.brokers.servicebus.hand import Hand
from things_kit.brokers.servicebus.links import Links, close_link
from things_kit.brokers.servicebus.messages import is_for, unpack
from things_kit.brokers.servicebus.names import entity_of, subscription_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.publisher import Publisher
from things_kit.brokers.servicebus.settlement import Settlement, Taken, complete
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription

ACCEPT: Final = 20.0
"""Seconds for which a link waits for a session with messages."""

ASKING: Final = 3
"""Links that wait for a session at once: each is a connection."""

IDLE: Final = 0.5
"""Seconds after which a session without messages is left to others."""

TURN: Final = 10.0
"""Seconds after which a session is left though it has messages, for others may have some too."""

CREDIT: Final = 50


class SessionReceiver:
    """A subscription, or a queue, whose messages belong to sessions.

    Each of a few tasks has a link to the next session that has messages. While messages of a session are in hand its link
    stays, and with it the lock; then the session goes to whoever asks next.
    """

    def __init__(
        self, settings: Settings, links: Links, admin: Admin, publisher: Publisher, subscription: Subscription
    ) -> None:
        self._links = links
        self._admin = admin
        self._subscription = subscription
        self._settlement = Settlement(settings, publisher, subscription)
        self._entity = entity_of(subscription.topic)
        self._group = subscription_of(subscription.group)
        self._number = settings.options.session_receivers
        self._credit = max(1, min(CREDIT, subscription.max_in_flight))
        self._asking = asyncio.Semaphore(ASKING)
        self._hand = Hand(self._settlement)
        self._open: set[ServiceBusReceiver] = set()
        self._slots: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Begin to ask for sessions."""
        await self._links.ping()
        name = "things_kit servicebus session"
        self._slots = [asyncio.create_task(self._serve_sessions(), name=name) for _ in range(self._number)]

    # --- one slot

    async def _serve_sessions(self) -> None:
        while True:
            try:
                async with self._asking:
                    link = await self._links.receiver(
                        self._entity,
                        self._group,
                        self._credit,
                        session_id=NEXT_AVAILABLE_SESSION,
                        max_wait_time=ACCEPT,
                    )
            except Exception as error:  # noqa: BLE001 - whatever it is, `receive` raises it
                if isinstance(error.__cause__, OperationTimeoutError | SessionCannotBeLockedError):
                    continue  # nobody had messages
                self._hand.fail(error)
                return
            await self._serve(link)

    async def _serve(self, link: ServiceBusReceiver) -> None:
        self._open.add(link)
        try:
            await self._read(link)
            await self._until_settled(link)
        except GONE:
            self._forget(link)
        except CLIENT as error:
            self._forget(link)
            self._hand.fail(translated(error, f"receiving from {self._subscription.topic!r}"))
        except Exception as error:  # noqa: BLE001 - whatever it is, `receive` raises it
            self._hand.fail(error)
        self._open.discard(link)
        await close_link(link)

    async def _read(self, link: ServiceBusReceiver) -> None:
        """Read until nothing more comes, or its turn is over."""
        ends = asyncio.get_running_loop().time() + TURN
        while True:
            for _ in range(self._credit):
                received = next(iter(await link.receive_messages(1, max_wait_time=IDLE)), None)
                if received is None:
                    return
                taken = Taken(received, unpack(self._subscription.topic, received), link)
                if is_for(received, self._group):
                    self._hand.put(taken)
                else:
                    await self._settlement.all([taken], complete)
            await self._until_settled(link)
            if asyncio.get_running_loop().time() > ends:
                return

    async def _until_settled(self, link: ServiceBusReceiver) -> None:
        await self._hand.until(lambda: not self._hand.has_of(link))

    def _forget(self, link: ServiceBusReceiver) -> None:
        """Its lock is lost: its messages come to others."""
        self._hand.forget(lambda taken: taken.link is link)
        self._subscription.forget(lambda delivery: delivery.token.link is link)

    # --- all of them

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """What has arrived, after at most `wait` seconds."""
        return await self._hand.take(limit, wait)

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Complete, give back or copy; once begun it goes on, also if nobody waits for it any more."""
        await self._hand.settle(acknowledged, released)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Keep the sessions, and with them all of their messages."""
        renewing = [self._renew(link) for link in list(self._open)]
        for outcome in await asyncio.gather(*renewing, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _renew(self, link: ServiceBusReceiver) -> None:
        try:
            await link.session.renew_lock()
        except GONE:
            self._forget(link)
        except CLIENT as error:
            if link in self._open:
                raise ConnectionLost(str(translated(error, "keeping a session"))) from error

    async def close(self) -> None:
        """Give back what was not settled, leave all sessions, and remove an ephemeral group."""
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        await self._hand.give_back()
        await asyncio.gather(*map(close_link, self._open))
        self._open.clear()
        await remove_ephemeral(self._admin, self._subscription)
