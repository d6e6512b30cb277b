"""Receiving from sessions: several at once, each the consumer's own until it has been empty for a moment."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from azure.servicebus import NEXT_AVAILABLE_SESSION
from azure.servicebus.exceptions import OperationTimeoutError, SessionCannotBeLockedError

from things_kit.brokers.servicebus.admin import Admin, remove_ephemeral
from things_kit.brokers.servicebus.errors import CLIENT, sentence
from things_kit.brokers.servicebus.hand import Hand
from things_kit.brokers.servicebus.incoming import Incoming
from things_kit.brokers.servicebus.links import Links
from things_kit.brokers.servicebus.names import entity_of, subscription_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.publisher import Publisher
from things_kit.brokers.servicebus.settlement import Settlement
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription

log = logging.getLogger("things_kit.servicebus")

ACCEPT: Final = 20.0
"""Seconds for which a link waits for a session with messages."""

ANSWER: Final = 0.3
"""Seconds within which the service says that there is no such subscription."""

ASKING: Final = 3
"""Links that wait for a session at once."""

IDLE: Final = 0.3
"""Seconds after which a session without messages is left to others, and one whose messages all wait is at rest."""

TURN: Final = 10.0
"""Seconds after which a session is left though it has messages, for others may have some too."""


class SessionReceiver:
    """A subscription, or a queue, whose messages belong to sessions.

    A few links wait for the next session that has messages. While messages of a session are in hand its link stays, and with
    it the lock; then the session goes to whoever asks next. A session that is at rest, as its messages are in back-off or
    in slow handlers, does not count among those that one consumer has at once: it would hold back others.
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
        self._most = min(settings.options.session_receivers, subscription.max_in_flight)
        self._share = subscription.max_in_flight // self._most
        self._room = subscription.max_in_flight
        self._hand = Hand(self._settlement, subscription)
        self._renewing = settings.options.lease / 3
        self._open: set[Incoming] = set()
        self._resting: set[Incoming] = set()
        self._asking: list[asyncio.Task[None]] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()

    async def open(self) -> None:
        """Begin to ask for sessions."""
        await self._links.ping()
        name = "things_kit servicebus sessions"
        asking = min(ASKING, self._most)
        self._asking = [asyncio.create_task(self._accept(), name=name) for _ in range(asking)]
        if not self._subscription.create:
            await asyncio.wait(self._asking, timeout=ANSWER, return_when=asyncio.FIRST_COMPLETED)
            if self._hand.trouble is not None:
                await self.close()
                raise self._hand.trouble

    # --- asking for sessions

    async def _accept(self) -> None:
        """Accept one session after the other, as there is room."""
        try:
            while True:
                while not self._has_room():
                    self._freed.clear()
                    await self._freed.wait()
                link = await self._next()
                if link is not None:
                    self._open.add(link)
                    task = asyncio.create_task(self._serve(link), name="things_kit servicebus session")
                    self._serving.add(task)
                    task.add_done_callback(self._serving.discard)
        except Exception as error:  # noqa: BLE001 - whatever it is, `receive` raises it
            self._hand.fail(error)

    def _has_room(self) -> bool:
        return len(self._open) - len(self._resting) < self._most and self._hand.count < self._room

    async def _next(self) -> Incoming | None:
        """A link to the next session that has messages; None if there was none in time."""
        try:
            return await self._links.receiver(
                self._entity,
                self._group,
                self._hand.put,
                session_id=NEXT_AVAILABLE_SESSION,
                max_wait_time=ACCEPT,
            )
        except ConnectionLost as error:
            if isinstance(error.__cause__, OperationTimeoutError | SessionCannotBeLockedError):
                return None
            raise

    # --- one session

    async def _serve(self, link: Incoming) -> None:
        """Read one session, and leave it."""
        try:
            await self._read(link)
            await self._leave(link)
        except Exception as error:  # noqa: BLE001 - whatever it is, `receive` raises it
            self._hand.fail(error)

    async def _read(self, link: Incoming) -> None:
        """Until nothing more comes, or its turn is over, and nothing of it is in hand."""
        clock, changed = asyncio.get_running_loop().time, self._hand.change_of(link)
        link.ended.add_done_callback(lambda _: changed.set())
        ends, due = clock() + TURN, clock() + self._renewing
        while link.trouble is None:
            if clock() > due:
                due = clock() + self._renewing
                await self._renew(link)
            await self._ask(link, leaving=clock() > ends)
            quiet = not await self._change(link)
            if self._hand.count_of(link):
                self._rests(link, quiet)
            elif quiet or clock() > ends:
                await link.drain()
                if not self._hand.count_of(link):
                    break
                ends = max(ends, clock() + IDLE)  # something came in the last moment

    async def _ask(self, link: Incoming, *, leaving: bool) -> None:
        if leaving:
            if link.credit > 0:
                await link.drain()
            return
        room = self._share - self._hand.count_of(link)
        if room > link.credit and (link.credit <= 0 or 2 * (room - link.credit) >= self._share):
            await link.ask(room)

    async def _change(self, link: Incoming) -> bool:
        """Wait until something of the session arrives, is settled, or it is lost; whether it was in time."""
        changed = self._hand.change_of(link)
        try:
            async with asyncio.timeout(IDLE):
                await changed.wait()
        except TimeoutError:
            return False
        changed.clear()
        return True

    async def _renew(self, link: Incoming) -> None:
        """Keep the session, and with it all of its messages. If that fails the lock may be lost: then so is the link."""
        try:
            await link.renew_session()
        except (*CLIENT, ValueError) as error:  # the latter of a link that was closed meanwhile
            log.info("a session of %s could not be kept: %s", self._subscription.topic, sentence(error))
            link.trouble = link.trouble or error

    def _rests(self, link: Incoming, rests: bool) -> None:
        (self._resting.add if rests else self._resting.discard)(link)
        self._freed.set()

    async def _leave(self, link: Incoming) -> None:
        """Close the link. If it was lost, its messages come to others."""
        if link.trouble is not None:
            self._forget(link)
        await link.close()
        self._open.discard(link)
        self._rests(link, rests=False)

    def _forget(self, link: Incoming) -> None:
        self._hand.forget(lambda taken: taken.link is link)
        self._subscription.forget(lambda delivery: delivery.token.link is link)

    # --- all of them

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """What has arrived, after at most `wait` seconds."""
        return await self._hand.take(limit, wait)

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Complete, give back or copy; once begun it goes on, also if nobody waits for it any more."""
        await self._hand.settle(acknowledged, released)
        self._freed.set()

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Nothing: a session is locked as a whole, and kept while its link is open."""

    async def close(self) -> None:
        """Give back what was not settled, leave all sessions, and remove an ephemeral group."""
        tasks: list[asyncio.Task[Any]] = [*self._asking, *self._serving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        links = list(self._open)
        await asyncio.gather(*(link.drain() for link in links))
        await self._hand.give_back()
        await asyncio.gather(*(link.close() for link in links))
        self._open.clear()
        await remove_ephemeral(self._admin, self._subscription)
