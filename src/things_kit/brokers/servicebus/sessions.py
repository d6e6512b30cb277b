"""Receiving from sessions: several at once, each the consumer's own until it has been empty for a moment."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from things_kit.brokers.servicebus.admin import Admin
from things_kit.brokers.servicebus.amqp.codec import Described
from things_kit.brokers.servicebus.amqp.connection import LOST, AmqpError
from things_kit.brokers.servicebus.client import SESSION, Client
from things_kit.brokers.servicebus.errors import ERRORS, GONE, NO_SESSION
from things_kit.brokers.servicebus.options import ServiceBusOptions
from things_kit.brokers.servicebus.receiver import PROMPT, Inflow, LinkReceiver, drain, lost, stays
from things_kit.engine.cancelling import ended
from things_kit.engine.driver import Delivery, Subscription

log = logging.getLogger("things_kit.servicebus")

ACCEPT: Final = 20.0
"""Seconds for which a link waits for a session with messages."""

ASKING: Final = 3
"""Links that wait for a session at once."""

IDLE: Final = 0.3
"""Seconds after which a session without messages is left to others, and one whose messages all wait is at rest."""

TURN: Final = 10.0
"""Seconds after which a session is left though it has messages, for others may have some too."""


class SessionReceiver(LinkReceiver):
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
        super().__init__(client, admin, subscription, entity, options)
        self._resting: set[Inflow] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: list[asyncio.Task[None]] = []
        self._freed = asyncio.Event()

    async def open(self) -> None:
        """See that the service is there, and the subscription; sessions are asked for with the first credit."""
        with ERRORS.during(self._doing):
            await self._client.ping()
            if not self._subscription.create:
                await self._look()

    def credit(self, window: int) -> None:
        """So many may be here, of all sessions, that are not settled."""
        if not self._accepting:
            self._accepting = [self._start(self._accept()) for _ in range(ASKING)]
        super().credit(window)

    def _stir(self) -> None:
        """What one session may have depends on all others."""
        self._freed.set()
        for inflow in self._open:
            inflow.changed.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="things_kit servicebus session")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _look(self) -> bool:
        """Whether a session with messages is nobody's. Raises as the client, if there is no such subscription."""
        try:
            link = await self._client.receiver(self._entity, lambda *_: None, next_session=PROMPT)
            await stays(link)
        except AmqpError as error:
            if error.condition not in NO_SESSION:
                raise
            return False
        await link.close()
        return True

    # --- asking for sessions

    @property
    def _working(self) -> int:
        return len(self._open) - len(self._resting)

    async def _accept(self) -> None:
        """Accept one session after the other, as there is room."""
        try:
            while True:
                while self._working >= min(self._options.session_receivers, self._window):
                    self._freed.clear()
                    await self._freed.wait()
                inflow = Inflow(self._subscription)
                try:
                    await inflow.open(self._client, self._entity, ACCEPT)
                except AmqpError as error:
                    if error.condition not in NO_SESSION:
                        raise
                else:
                    self._open.add(inflow)
                    self._start(self._serve(inflow))
                    self._stir()
        except Exception as error:  # noqa: BLE001 - whatever it is, the consumer learns of it
            self._subscription.inbox.fail(lost(error, self._doing))

    # --- one session

    async def _serve(self, inflow: Inflow) -> None:
        """Take what a session has, and leave it. What others have of it by now is not ours to settle."""
        ended = inflow.link.ended
        await self._take(inflow)
        if ended.done():
            self._subscription.inbox.forget(lambda delivery: delivery.token.inflow is inflow)
            if ended.result().condition not in GONE:
                self._subscription.inbox.fail(lost(ended.result(), self._doing))
        await inflow.link.close()
        self._open.discard(inflow)
        self._resting.discard(inflow)
        self._stir()

    async def _take(self, inflow: Inflow) -> None:
        """Until nothing more comes, or its turn is over, and nothing of it is held; or it is lost."""
        clock = asyncio.get_running_loop().time
        ends, due = clock() + TURN, clock() + self._options.lease / 3
        while not inflow.link.ended.done():
            if clock() > due:
                due = clock() + self._options.lease / 3
                await self._keep(inflow)
            leaving = clock() > ends
            if leaving:
                await drain(inflow.link)
            else:
                inflow.ask(self._share(inflow))
            quiet = await inflow.quiet(IDLE)
            if inflow.held:
                self._rests(inflow, rests=quiet)
            elif quiet or leaving:
                await drain(inflow.link)
                if not inflow.held:
                    return
                ends = max(ends, clock() + IDLE)  # something came in the last moment

    async def _keep(self, inflow: Inflow) -> None:
        """Renew its lock, and with it that of all of its messages. If that fails it is given up: perhaps others have it."""
        try:
            body = {"session-id": session_of(inflow.link.source)}
            await self._client.ask(self._entity, "renew-session-lock", inflow.link, body)
        except (AmqpError, OSError) as error:
            log.info("a session of %s could not be kept: %s", self._subscription.topic, error)
            condition = error.condition if isinstance(error, AmqpError) else LOST
            inflow.link.abandon(AmqpError(condition, str(error)))

    def _share(self, inflow: Inflow) -> int:
        """What one session may ask for: as much as each other that is at work, of what is left."""
        working = len(self._open) - len(self._resting - {inflow})
        left = self._window - sum(len(each.held) + each.link.credit for each in self._open - {inflow})
        return min(left, max(1, self._window // max(1, working))) - len(inflow.held)

    def _rests(self, inflow: Inflow, *, rests: bool) -> None:
        if rests != (inflow in self._resting):
            self._resting ^= {inflow}
            self._stir()

    # --- all of them

    async def quiesce(self) -> None:
        """Ask for no more sessions, and use up the credit of those that are here."""
        await ended(*self._accepting)
        await super().quiesce()

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Nothing: a session is locked as a whole, and kept while its link is open, also when nothing of it is held."""

    async def overdue(self) -> int | None:
        """Whether there is a session that nobody has, though there is room for one here."""
        with ERRORS.during(self._doing):
            return int(self._working < self._options.session_receivers and await self._look())

    async def close(self) -> None:
        """Leave all sessions, and remove an ephemeral group."""
        await ended(*self._tasks)
        await super().close()


def session_of(source: Any) -> Any:
    """Which session the service chose, by the source that it attached."""
    chosen = (source.value[7] or {}).get(SESSION)
    return chosen.value if isinstance(chosen, Described) else chosen
