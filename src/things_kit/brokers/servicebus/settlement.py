"""What becomes of messages that were received: completed, given back, copied for later, or locked for longer."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusReceiver
from azure.servicebus.exceptions import MessageAlreadySettled, ServiceBusConnectionError

from things_kit.brokers.servicebus.errors import CLIENT, GONE, translated
from things_kit.brokers.servicebus.messages import copy
from things_kit.brokers.servicebus.names import subscription_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.publisher import Item, Publisher
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.messaging.errors import MessageTooLarge
from things_kit.messaging.message import Message

AT_ONCE: Final = 100
"""Messages that are settled, or locked for longer, at once: each is a frame of its own, and an answer, for which
each waits by itself: many more keep one another from getting on."""

RENEWED_AT_ONCE: Final = 100
"""Messages whose locks one request renews."""

RENEWING: Final = 10.0
"""Seconds that such a request may take."""


class Taken(msgspec.Struct, eq=False, gc=False):
    """A message that is locked for us: as it came, as we made it, and over which link."""

    received: ServiceBusReceivedMessage
    message: Message
    link: ServiceBusReceiver


class Settlement:
    """Settles what one subscription has received."""

    def __init__(self, settings: Settings, publisher: Publisher, subscription: Subscription) -> None:
        self._sessions = settings.options.sessions
        self._publisher = publisher
        self._topic = subscription.topic
        self._group = subscription_of(subscription.group)
        self._ordering = subscription.ordering
        self._doing = f"settling messages of {subscription.topic!r}"

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """As a receiver's `settle`."""
        done: list[Taken] = [delivery.token for delivery in acknowledged]
        later = [release for release in released if self._needs_copy(release)]
        if later:
            done += await self._copied(later)
        copied = {id(taken) for taken in done} if later else ()
        await self.all(done, complete)
        back = [release for release in released if id(release.delivery.token) not in copied]
        for release in back:
            taken: Taken = release.delivery.token
            counts = release.attempt > taken.message.attempt
            await self.all([taken], abandon) if counts else await let_go(taken)

    async def all(self, taken: Sequence[Taken], settle: Callable[[Taken], Awaitable[None]]) -> None:
        """Do the same with each; what somebody else has by now is passed over. Raises ConnectionLost."""
        for start in range(0, len(taken), AT_ONCE):
            outcomes = await asyncio.gather(
                *map(settle, taken[start : start + AT_ONCE]), return_exceptions=True
            )
            for outcome in outcomes:
                if outcome is None or isinstance(outcome, (*GONE, MessageAlreadySettled)):
                    continue
                if isinstance(outcome, CLIENT):
                    raise _lost(outcome, self._doing) from outcome
                raise outcome

    async def extend(self, taken: Sequence[Taken]) -> list[Taken]:
        """Lock them for longer; returns what was lost. Raises ConnectionLost."""
        lost: list[Taken] = []
        taken = [each for each in taken if each.received.lock_token is not None]  # else settled meanwhile
        for start in range(0, len(taken), RENEWED_AT_ONCE):
            chunk = taken[start : start + RENEWED_AT_ONCE]
            try:
                await renew(chunk)
            except GONE:
                lost += await self._extend_each(chunk)
            except CLIENT as error:
                raise _lost(error, self._doing) from error
        return lost

    async def _extend_each(self, taken: Sequence[Taken]) -> list[Taken]:
        """One after the other, where one of them is lost: the service then renews none."""
        lost: list[Taken] = []
        for each in taken:
            if each.received.lock_token is None:
                continue
            try:
                await renew([each])
            except GONE:
                lost.append(each)
            except CLIENT as error:
                raise _lost(error, self._doing) from error
        return lost

    def _needs_copy(self, release: Release) -> bool:
        """Whether it can only come again as asked for if it is published again.

        A copy comes after all that is there now; what must keep its place among others goes back as it is.
        """
        message: Message = release.delivery.token.message
        ordered = self._ordering == "partition" or (self._ordering == "key" and message.key is not None)
        if release.aside:
            return True
        return not ordered and (release.delay >= 1 or release.attempt > message.attempt + 1)

    async def _copied(self, releases: Sequence[Release]) -> list[Taken]:
        """Publish copies for this group; returns the originals that are safe to complete. Raises ConnectionLost."""
        now = datetime.now(UTC)
        packed = [self._copy(release, now) for release in releases]
        items = [Item(index, each) for index, each in enumerate(packed) if each is not None]
        results: list[Exception | None] = [None if each else MessageTooLarge("its copy") for each in packed]
        await self._publisher.send_items(self._topic, items, results)
        return [
            release.delivery.token
            for release, result in zip(releases, results, strict=True)
            if result is None
        ]

    def _copy(self, release: Release, now: datetime) -> ServiceBusMessage | None:
        due = now + timedelta(seconds=release.delay) if release.delay > 0 else None
        message: Message = release.delivery.token.message
        try:
            return copy(message, self._group, release.attempt, due, sessions=self._sessions)
        except MessageTooLarge:
            return None


async def complete(taken: Taken) -> None:
    """It never comes again."""
    await _settled(taken, taken.link.complete_message)


async def abandon(taken: Taken) -> None:
    """It comes again, as one more delivery."""
    await _settled(taken, taken.link.abandon_message)


async def _settled(taken: Taken, settle: Callable[[ServiceBusReceivedMessage], Awaitable[None]]) -> None:
    try:
        await settle(taken.received)
    except MessageAlreadySettled:
        raise
    except ValueError as error:
        if taken.link._running:  # noqa: SLF001 - the client raises it also where the connection is gone
            raise
        raise ServiceBusConnectionError(message=str(error)) from error


async def renew(taken: Sequence[Taken]) -> None:
    """Lock messages of one link for longer, by one request.

    The client has a public method for one message alone; called for several at once, it gives their requests the same
    number, and the service closes the connection; one after the other takes longer than the locks last.
    """
    link = taken[0].link
    tokens = [each.received.lock_token for each in taken]
    answer = await link._renew_locks(*tokens, timeout=RENEWING)  # type: ignore[arg-type]  # noqa: SLF001
    for each, expiry in zip(taken, answer[b"expirations"], strict=True):
        each.received._expiry = datetime.fromtimestamp(expiry / 1000, UTC)  # noqa: SLF001


async def let_go(taken: Taken) -> None:
    """It comes again, and this delivery does not count.

    That is the outcome `released`, which the client itself settles with when it closes, but has no public method for.
    """
    received, handler = taken.received, taken.link._handler  # noqa: SLF001 - see above
    if handler is None:
        return  # its connection is gone: its lock runs out, and it comes again
    with contextlib.suppress(Exception):  # also of the client's protocol library, which has errors of its own
        await handler.settle_messages_async(received._delivery_id, received._delivery_tag, "released")  # noqa: SLF001


def _lost(error: BaseException, doing: str) -> ConnectionLost:
    trouble = translated(error, doing)
    return trouble if isinstance(trouble, ConnectionLost) else ConnectionLost(str(trouble))
