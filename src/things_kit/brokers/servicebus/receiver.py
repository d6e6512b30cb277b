"""Receiving over links: from a subscription or a queue, and what sessions have in common with that."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from things_kit.brokers.servicebus.admin import Admin
from things_kit.brokers.servicebus.amqp.codec import Described
from things_kit.brokers.servicebus.amqp.connection import AmqpError
from things_kit.brokers.servicebus.amqp.links import ACCEPTED, MODIFIED, RELEASED, Link, refused
from things_kit.brokers.servicebus.client import PATIENCE, Client
from things_kit.brokers.servicebus.errors import ERRORS, GONE
from things_kit.brokers.servicebus.names import subscription_of
from things_kit.brokers.servicebus.options import ServiceBusOptions
from things_kit.brokers.servicebus.wire import unpack
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription

PROMPT: Final = 0.3
"""Seconds within which it says that there is no such subscription: a link to it may open, and is closed right after that."""

DRAINED: Final = 0.5
"""Seconds within which it says that nothing more is on its way."""

GIVEN_BACK: Final = 0.2
"""Seconds within which it takes back what was not settled, before a link is closed."""

MOST: Final = 500
"""Messages that a link is asked for at a time."""


AT_ONCE: Final = 100
"""Messages whose locks one request renews."""


class Token(msgspec.Struct, eq=False, gc=False):
    """How a message is settled: over which link, by which number and tag; as which attempt it came, and whether that was said."""

    inflow: "Inflow"
    number: int
    tag: bytes
    attempt: int
    said: bool = False


class Inflow:
    """What comes over one link: handed on as it arrives, and counted until it is settled."""

    link: Link

    def __init__(self, subscription: Subscription) -> None:
        self.held: dict[Token, None] = {}
        self.changed = asyncio.Event()
        self._topic = subscription.topic
        self._group = subscription_of(subscription.group)
        self._inbox = subscription.inbox
        self._touched = asyncio.get_running_loop().time()

    async def open(self, client: Client, entity: str, next_session: float | None = None) -> None:
        """Open the link; for `next_session` it waits so long for a session. Raises as the client."""
        self.link = await client.receiver(entity, self._arrived, next_session=next_session)
        self.link.ended.add_done_callback(lambda _: self.changed.set())
        self._touch()

    def _touch(self) -> None:
        self._touched = asyncio.get_running_loop().time()
        self.changed.set()

    async def quiet(self, seconds: float) -> bool:
        """Wait for a change; whether nothing has come and nothing was settled for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        self.changed.clear()
        return asyncio.get_running_loop().time() - self._touched >= seconds

    def _arrived(self, number: int, tag: bytes, payload: bytes) -> None:
        """What is for another group is done with at once, and what is not taken goes back."""
        message, suspect, group = unpack(self._topic, payload)
        if group not in {None, self._group}:
            self.link.settle(number, ACCEPTED, answered=False)
            self.link.ask(self.link.credit + 1)
            return
        token = Token(self, number, tag, message.attempt)
        if self._inbox.put([Delivery(message, token, suspect)]):
            self.link.settle(number, RELEASED, answered=False)
        else:
            self.held[token] = None
        self._touch()

    def ask(self, room: int) -> None:
        """Have it bring so many; but not a few more while many are on their way."""
        room = max(0, min(room, MOST))
        missing = room - self.link.credit
        if missing < 0 or (missing > 0 and (self.link.credit <= 0 or 4 * missing >= room)):
            self.link.ask(room)

    def settled(self, token: Token) -> None:
        """It is not held any more."""
        self.held.pop(token, None)
        self._touch()

    async def close(self) -> None:
        """Give back what was not settled, in the order in which it came, and close the link.

        What is on its way is waited for before, and the answers after: what ends with its link counts as tried.
        """
        await drain(self.link)
        for token in self.held:
            if not token.said:  # a second word would count, where both come at once
                self.link.settle(token.number, RELEASED)
        self.held.clear()
        if waiting := self.link.unanswered:
            await asyncio.wait(waiting, timeout=GIVEN_BACK)
        await self.link.close()


async def stays(link: Link) -> None:
    """Wait until it is clear that there is such an entity. Raises AmqpError."""
    try:
        await asyncio.wait({link.ended}, timeout=PROMPT)
    except BaseException:
        link.abandon()
        raise
    if link.ended.done():
        raise link.ended.result()


async def drain(link: Link) -> None:
    """Have it bring nothing more; in vain where the service does not answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAINED):
            await link.drain()


class LinkReceiver:
    """A subscription, or a queue."""

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
        self._options = options
        self._doing = f"receiving from {subscription.topic!r}"
        self._window = 0
        self._open: set[Inflow] = set()

    async def open(self) -> None:
        """Open the link. Raises ConnectionLost, ConfigError."""
        inflow = Inflow(self._subscription)
        with ERRORS.during(self._doing):
            await inflow.open(self._client, self._entity)
            if not self._subscription.create:
                await stays(inflow.link)
        self._open.add(inflow)
        inflow.link.ended.add_done_callback(self._ended)

    def _ended(self, ended: asyncio.Future[AmqpError]) -> None:
        if self._open:
            self._subscription.inbox.fail(lost(ended.result(), self._doing))

    def credit(self, window: int) -> None:
        """So many may be here that are not settled."""
        self._window = window
        self._stir()

    def _stir(self) -> None:
        """There may be room for more."""
        for inflow in self._open:
            inflow.ask(self._window - len(inflow.held))

    async def quiesce(self) -> None:
        """Use up the credit."""
        self._window = 0
        await asyncio.gather(*(drain(inflow.link) for inflow in self._open))

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Complete, or give back. The latter is not answered: the service may have nothing to say to that."""
        outcomes = [(delivery.token, ACCEPTED) for delivery in acknowledged]
        for release in released:
            token = release.delivery.token
            outcomes.append((token, MODIFIED if release.attempt > token.attempt else RELEASED))
        answers = []
        for token, state in outcomes:
            token.said = True
            answer = token.inflow.link.settle(token.number, state, answered=state is not RELEASED)
            if answer is not None:
                answers.append((answer, state))
        try:
            async with self._client.within(PATIENCE):
                for answer, state in answers:
                    _check(await answer, state)
        except AmqpError as error:
            raise lost(error, f"settling messages of {self._subscription.topic!r}") from error
        for token, _ in outcomes:
            token.inflow.settled(token)
        self._stir()

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Lock them for longer."""
        tokens = [delivery.token for delivery in deliveries]
        missing: set[Token] = set()
        try:
            for start in range(0, len(tokens), AT_ONCE):
                missing.update(await self._renew(tokens[start : start + AT_ONCE]))
        except (AmqpError, OSError) as error:
            raise lost(error, f"renewing locks of {self._subscription.topic!r}") from error
        if missing:
            self._subscription.inbox.forget(lambda delivery: delivery.token in missing)
            for token in missing:
                token.inflow.settled(token)

    async def _renew(self, tokens: Sequence[Token]) -> list[Token]:
        """Those that are lost: where there is one, none of a request is renewed."""
        numbers = tuple(UUID(bytes_le=token.tag) for token in tokens)
        try:
            await self._client.ask(
                self._entity, "renew-lock", tokens[0].inflow.link, {"lock-tokens": numbers}
            )
        except AmqpError as error:
            if error.condition not in GONE:
                raise
            if len(tokens) == 1:
                return [*tokens]
            return [lost for token in tokens for lost in await self._renew([token])]
        return []

    async def overdue(self) -> int | None:
        """Whether another link is brought something that was not brought over this one. It goes back at once, uncounted."""
        found: list[int] = []
        with ERRORS.during(self._doing):
            link = await self._client.receiver(self._entity, lambda number, *_: found.append(number))
            try:
                link.ask(1)
                await drain(link)
                for number in found:
                    link.settle(number, RELEASED, answered=False)
            finally:
                link.abandon()
        return len(found)

    async def close(self) -> None:
        """Give back what is not settled, close the links, and remove an ephemeral group."""
        inflows, self._open = self._open, set()
        leaving = self._admin.remove_ephemeral(self._subscription)
        await asyncio.gather(*(inflow.close() for inflow in inflows), leaving)


def _check(answer: Any, state: Described) -> None:
    """Pass over what somebody else has by now."""
    if isinstance(answer, Described) and answer.descriptor == state.descriptor:
        return
    error = answer if isinstance(answer, AmqpError) else refused(answer)
    if error.condition not in GONE:
        raise error


def lost(error: Exception, doing: str) -> ConnectionLost:
    """What ended a link: whatever it was, another one shows whether it can be mended."""
    meaning = ERRORS.translate(error, doing)
    return meaning if isinstance(meaning, ConnectionLost) else ConnectionLost(str(meaning))
