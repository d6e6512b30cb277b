"""Receiving from sessions: several at once, each the consumer's own until it has been empty for a moment."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from things_kit.brokers.servicebus.admin import Admin
from things_kit.brokers.servicebus.amqp.connection import LOST, AmqpError
from things_kit.brokers.servicebus.client import Client
from things_kit.brokers.servicebus.errors import ERRORS, GONE, NO_SESSION
from things_kit.brokers.servicebus.inflow import PROMPT, Inflow, Locks, lost, settle
from things_kit.brokers.servicebus.options import ServiceBusOptions
from things_kit.engine.driver import Delivery, Release, Subscription

log = logging.getLogger("things_kit.servicebus")

ACCEPT: Final = 20.0
"""Seconds for which a link waits for a session with messages."""

ASKING: Final = 3
"""Links that wait for a session at once."""

IDLE: Final = 0.3
"""Seconds after which a session without messages is left to others, and one whose messages all wait is at rest."""

TURN: Final = 10.0
"""Seconds after which a session is left though it has messages, for others may have some too."""


class SessionReceiver:
    """A subscription, or a queue, whose messages belong to sessions.

    A few links wait for the next session that has messages. While messages of a session are held its link stays, and with
    it the lock; then the session goes to whoever asks next. A session that is at rest, as its messages are in back-off or
    in slow handlers, does not count among those that one consumer has at once: it would hold back others.
    """

    def __init__(
        self,
        client: Client,
        admin: Admin,
        subscription: Subscription,
        entity: str,
        options: ServiceBusOptions,
    ) -> None:
        self._client = client
        self._admin = admin
        self._subscription = subscription
        self._entity = entity
        self._most = options.session_receivers
        self._renewing = options.lease / 3
        self._doing = f"receiving from {subscription.topic!r}"
        self._locks = Locks(client, entity)
        self._window = 0
        self._open: set[Inflow] = set()
        self._resting: set[Inflow] = set()
        self._accepting: list[asyncio.Task[None]] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()

    async def open(self) -> None:
        """See that the service is there, and the subscription; sessions are asked for with the first credit."""
        with ERRORS.during(self._doing):
            await self._client.ping()
            if not self._subscription.create:
                await self._look()

    async def _look(self) -> None:
        """See that there is such a subscription."""
        inflow = Inflow(self._subscription)
        try:
            await inflow.open(self._client, self._entity, PROMPT)
            await inflow.stays()
        except AmqpError as error:
            if error.condition not in NO_SESSION:
                raise
        else:
            await inflow.session.close()

    def credit(self, window: int) -> None:
        """So many may be here, of all sessions, that are not settled."""
        self._window = window
        if not self._accepting:
            name = "things_kit servicebus sessions"
            self._accepting = [asyncio.create_task(self._accept(), name=name) for _ in range(ASKING)]
        self._stir()

    def _stir(self) -> None:
        """What one session may have depends on all others."""
        self._freed.set()
        for inflow in self._open:
            inflow.changed.set()

    # --- asking for sessions

    async def _accept(self) -> None:
        """Accept one session after the other, as there is room."""
        try:
            while True:
                while len(self._open) - len(self._resting) >= min(self._most, self._window):
                    self._freed.clear()
                    await self._freed.wait()
                try:
                    await self._accepted(ACCEPT)
                except AmqpError as error:
                    if error.condition not in NO_SESSION:
                        raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the consumer learns of it
            self._subscription.inbox.fail(lost(error, self._doing))

    async def _accepted(self, within: float) -> None:
        """Accept the next session that has messages, and serve it. Raises as the client, also where there is none."""
        inflow = Inflow(self._subscription)
        await inflow.open(self._client, self._entity, within)
        self._open.add(inflow)
        self._stir()
        serving = asyncio.create_task(self._serve(inflow), name="things_kit servicebus session")
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    # --- one session

    async def _serve(self, inflow: Inflow) -> None:
        """Take what a session has, and leave it. What others have of it by now is not ours to settle."""
        ended = inflow.link.ended
        await self._take(inflow)
        if ended.done():
            self._subscription.inbox.forget(lambda delivery: delivery.token.inflow is inflow)
            if ended.result().condition not in GONE:
                self._subscription.inbox.fail(lost(ended.result(), self._doing))
        await inflow.session.close()
        self._open.discard(inflow)
        self._resting.discard(inflow)
        self._stir()

    async def _take(self, inflow: Inflow) -> None:
        """Until nothing more comes, or its turn is over, and nothing of it is held; or it is lost."""
        clock = asyncio.get_running_loop().time
        ends, due = clock() + TURN, clock() + self._renewing
        while not inflow.link.ended.done():
            if clock() > due:
                due = clock() + self._renewing
                await self._renew(inflow)
            leaving = clock() > ends
            if leaving:
                await inflow.drain()
            else:
                inflow.ask(self._share(inflow))
            quiet = await inflow.quiet(IDLE)
            if inflow.held:
                self._rests(inflow, rests=quiet)
            elif quiet or leaving:
                await inflow.drain()
                if not inflow.held:
                    return
                ends = max(ends, clock() + IDLE)  # something came in the last moment

    async def _renew(self, inflow: Inflow) -> None:
        """Keep a session, and with it all of its messages. If that fails it is given up: perhaps others have it."""
        try:
            await self._locks.renew("renew-session-lock", inflow.link, {"session-id": inflow.session_id})
        except (AmqpError, OSError) as error:
            log.info("a session of %s could not be kept: %s", self._subscription.topic, error)
            condition = error.condition if isinstance(error, AmqpError) else LOST
            inflow.link.over(AmqpError(condition, str(error)))

    def _share(self, inflow: Inflow) -> int:
        """What one session may ask for: as much as each other that is at work, of what is left."""
        working = len(self._open) - len(self._resting - {inflow})
        left = self._window - sum(len(each.held) + each.link.credit for each in self._open - {inflow})
        return min(left, max(1, self._window // max(1, working))) - len(inflow.held)

    def _rests(self, inflow: Inflow, *, rests: bool) -> None:
        if rests != (inflow in self._resting):
            (self._resting.add if rests else self._resting.discard)(inflow)
            self._stir()

    # --- all of them

    async def quiesce(self) -> None:
        """Ask for no more sessions, and use up the credit of those that are here."""
        self._window = 0
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await asyncio.gather(*(inflow.drain() for inflow in self._open))

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Complete, or give back."""
        await settle(
            self._client, f"settling messages of {self._subscription.topic!r}", acknowledged, released
        )
        self._stir()

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Nothing: a session is locked as a whole, and kept while its link is open, also when nothing of it is held."""

    async def overdue(self) -> int | None:
        """The service counts what waits and what others hold together."""
        return None

    async def close(self) -> None:
        """Leave all sessions, and remove an ephemeral group."""
        tasks = [*self._accepting, *self._serving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._locks.close()
        await asyncio.gather(
            *(inflow.close() for inflow in self._open),
            self._admin.remove_ephemeral(self._subscription),
        )
        self._open.clear()
