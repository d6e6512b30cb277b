"""What becomes of messages that were received: completed, given back, copied for later, or locked for longer."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Final

from azure.servicebus import ServiceBusMessage

from things_kit.brokers.servicebus.errors import CLIENT, GONE, translated
from things_kit.brokers.servicebus.incoming import Outcome, Taken
from things_kit.brokers.servicebus.messages import copy
from things_kit.brokers.servicebus.names import subscription_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.publisher import Item, Publisher
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.messaging.errors import MessageTooLarge
from things_kit.messaging.message import Message

RENEWED_AT_ONCE: Final = 100
"""Messages whose locks one request renews."""


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
        back = [release for release in released if id(release.delivery.token) not in copied]
        counted = [each.delivery.token for each in back if each.attempt > each.delivery.token.message.attempt]
        uncounted = [
            each.delivery.token for each in back if each.attempt <= each.delivery.token.message.attempt
        ]
        await self.all(done, "accepted")
        await self.all(counted, "modified")
        await self.all(uncounted, "released")

    async def all(self, taken: Iterable[Taken], outcome: Outcome) -> None:
        """Do the same with each; what somebody else has by now is passed over. Raises ConnectionLost."""
        for link, of_link in groupby(sorted(taken, key=_link), key=lambda each: each.link):
            try:
                await link.settle(list(of_link), outcome)
            except CLIENT as error:
                raise _lost(error, self._doing) from error

    async def extend(self, taken: Sequence[Taken]) -> list[Taken]:
        """Lock them for longer; returns what was lost. Raises ConnectionLost."""
        lost: list[Taken] = []
        taken = [each for each in taken if not each.settled]
        for start in range(0, len(taken), RENEWED_AT_ONCE):
            chunk = taken[start : start + RENEWED_AT_ONCE]
            try:
                await chunk[0].link.renew(chunk)
            except GONE:
                lost += await self._extend_each(chunk)
            except CLIENT as error:
                raise _lost(error, self._doing) from error
        return lost

    async def _extend_each(self, taken: Sequence[Taken]) -> list[Taken]:
        """One after the other, where one of them is lost: the service then renews none."""
        lost: list[Taken] = []
        for each in taken:
            if each.settled:
                continue
            try:
                await each.link.renew([each])
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


def _link(taken: Taken) -> int:
    return id(taken.link)


def _lost(error: BaseException, doing: str) -> ConnectionLost:
    trouble = translated(error, doing)
    return trouble if isinstance(trouble, ConnectionLost) else ConnectionLost(str(trouble))
