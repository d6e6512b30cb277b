"""What comes over one link, until it is settled: what receivers of subscriptions and of sessions have in common."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from things_kit.brokers.servicebus.amqp.codec import Described
from things_kit.brokers.servicebus.amqp.connection import AmqpError
from things_kit.brokers.servicebus.amqp.conversation import Conversation
from things_kit.brokers.servicebus.amqp.links import (
    ACCEPTED,
    MODIFIED,
    RELEASED,
    Arrival,
    ReceivingLink,
    Session,
    refused,
)
from things_kit.brokers.servicebus.client import Client, session_of
from things_kit.brokers.servicebus.errors import ERRORS, GONE
from things_kit.brokers.servicebus.names import subscription_of
from things_kit.brokers.servicebus.wire import unpack
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription

ANSWER: Final = 10.0
"""Seconds within which the service confirms a settlement, or renews a lock."""

PROMPT: Final = 0.3
"""Seconds within which it says that there is no such subscription: a link to it may open, and is closed right after that."""

DRAINED: Final = 0.5
"""Seconds within which it says that nothing more is on its way."""

GIVEN_BACK: Final = 0.2
"""Seconds within which it takes back what was not settled, before a link is closed."""

MOST: Final = 500
"""Messages that a link is asked for at a time."""


class Token(msgspec.Struct, eq=False, gc=False):
    """How a message is settled: as which arrival, over which link; as which attempt it came, and whether that was said."""

    arrival: Arrival
    inflow: "Inflow"
    attempt: int
    said: bool = False


class Inflow:
    """What comes over one link: handed on as it arrives, and counted until it is settled."""

    session: Session
    link: ReceivingLink

    def __init__(self, subscription: Subscription) -> None:
        self.held: dict[Token, None] = {}
        self.changed = asyncio.Event()
        self._topic = subscription.topic
        self._group = subscription_of(subscription.group)
        self._inbox = subscription.inbox

    async def open(self, client: Client, entity: str, next_session: float | None = None) -> None:
        """Open the link; for `next_session` it waits so long for a session. Raises as the client."""
        self.session, self.link = await client.receiver(entity, self._arrived, next_session=next_session)
        self.link.ended.add_done_callback(lambda _: self.changed.set())
        self._touch()

    async def stays(self) -> None:
        """Wait until it is clear that there is such an entity. Raises AmqpError."""
        try:
            await asyncio.wait({self.link.ended}, timeout=PROMPT)
        except BaseException:
            self.session.abandon()
            raise
        if self.link.ended.done():
            raise self.link.ended.result()

    @property
    def session_id(self) -> Any:
        """The session that the service chose."""
        return session_of(self.link.source)

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

    def _arrived(self, arrival: Arrival) -> None:
        """What is for another group is done with at once, and what is not taken goes back."""
        message, suspect, group = unpack(self._topic, arrival.payload)
        arrival.payload = b""  # the message has it, for as long as it is here
        if group not in {None, self._group}:
            self.link.settle(arrival, ACCEPTED, answered=False)
            self.link.ask(self.link.credit + 1)
            return
        token = Token(arrival, self, message.attempt)
        if self._inbox.put([Delivery(message, token, suspect)]):
            self.link.settle(arrival, RELEASED, answered=False)
        else:
            self.held[token] = None
        self._touch()

    def ask(self, room: int) -> None:
        """Have it bring so many; but not a few more while many are on their way."""
        room = max(0, min(room, MOST))
        missing = room - self.link.credit
        if missing < 0 or (missing > 0 and (self.link.credit <= 0 or 4 * missing >= room)):
            self.link.ask(room)

    async def drain(self) -> None:
        """Have it bring nothing more; in vain where the service does not answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAINED):
                await self.link.drain()

    def settled(self, token: Token) -> None:
        """It is not held any more."""
        self.held.pop(token, None)
        self._touch()

    async def close(self) -> None:
        """Give back what was not settled, in the order in which it came, and close the link.

        What is on its way is waited for before, and the answers after: what ends with its link counts as tried.
        """
        await self.drain()
        for token in self.held:
            if not token.said:  # a second word would count, where both come at once
                self.link.settle(token.arrival, RELEASED)
        self.held.clear()
        if waiting := self.link.unanswered:
            await asyncio.wait(waiting, timeout=GIVEN_BACK)
        await self.session.close()


async def settle(
    client: Client, doing: str, acknowledged: Sequence[Delivery], released: Sequence[Release]
) -> None:
    """As a receiver's. What is given back is not answered: the service may have nothing to say to that."""
    outcomes = [(delivery.token, ACCEPTED) for delivery in acknowledged]
    for release in released:
        token = release.delivery.token
        outcomes.append((token, MODIFIED if release.attempt > token.attempt else RELEASED))
    answers = []
    for token, state in outcomes:
        token.said = True
        answers.append(
            (state, token.inflow.link.settle(token.arrival, state, answered=state is not RELEASED))
        )
    try:
        async with client.within(ANSWER):
            for state, answer in answers:
                if answer is not None:
                    _check(await answer, state)
    except AmqpError as error:
        raise lost(error, doing) from error
    for token, _ in outcomes:
        token.inflow.settled(token)


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


class Locks:
    """Renews the locks of messages and sessions: the service is asked over links that belong to its entity."""

    def __init__(self, client: Client, entity: str) -> None:
        self._client = client
        self._entity = entity
        self._opening = asyncio.Lock()
        self._conversation: Conversation | None = None

    async def renew(self, operation: str, link: ReceivingLink, body: dict[str, Any]) -> None:
        """Raises AmqpError, of a condition in GONE where one of them is lost; then none is renewed."""
        fields = {"operation": f"com.microsoft:{operation}", "associated-link-name": link.name}
        async with self._opening:
            if self._conversation is None or self._conversation.over:
                self._conversation = await self._client.conversation(self._entity)
        async with self._client.within(ANSWER):
            await self._conversation.ask(body, fields)

    async def renew_messages(self, tokens: Sequence[Token]) -> list[Token]:
        """Those that are lost. Raises AmqpError."""
        try:
            numbers = tuple(UUID(bytes_le=token.arrival.tag) for token in tokens)
            await self.renew("renew-lock", tokens[0].inflow.link, {"lock-tokens": numbers})
        except AmqpError as error:
            if error.condition not in GONE:
                raise
            if len(tokens) == 1:
                return [*tokens]
            return [lost for token in tokens for lost in await self.renew_messages([token])]
        return []

    def close(self) -> None:
        """Say goodbye."""
        if self._conversation is not None:
            self._conversation.close()
