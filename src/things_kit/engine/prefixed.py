"""`?topic_prefix=`: environments that share a broker. Names have the prefix there; what the engine and its users see has not.

It stands between the engine and any driver, and knows every protocol that a driver or a receiver may have.
"""

from collections.abc import Mapping, Sequence
from typing import Self

from msgspec.structs import replace

from things_kit.engine.driver import (
    Cancelling,
    Delivery,
    Driver,
    Fetching,
    Inbox,
    Later,
    Listened,
    Listing,
    ListingSchedules,
    Marking,
    Pushed,
    Receiver,
    Release,
    Scheduled,
    Scheduling,
    SendsLater,
    Subscription,
    Which,
)
from things_kit.engine.facts import Facts, Factual, Question
from things_kit.engine.listeners import nobody_listens
from things_kit.engine.publishes import Identified
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError, NobodyListens
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP


class Prefix:
    """Puts a prefix before names on their way to the broker, and takes it off on their way back."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def there(self, name: str) -> str:
        """The broker's name for ours."""
        return self.prefix + name

    def here(self, name: str) -> str:
        """Our name for the broker's; of what is not ours the name that it has."""
        return name.removeprefix(self.prefix)

    def is_ours(self, name: str) -> bool:
        """Whether the broker's name has the prefix."""
        return len(name) > len(self.prefix) and name.startswith(self.prefix)

    def message_there(self, message: Message) -> Message:
        """A message as the broker has it, whose driver may read there which group it is for."""
        headers = message.headers
        if REPLAY_GROUP in headers:
            headers = {**headers, REPLAY_GROUP: self.there(headers[REPLAY_GROUP])}
        return message.replace(topic=self.there(message.topic), headers=headers)

    def message_here(self, message: Message, topic: str) -> Message:
        """A message that came from this topic, as handlers see it."""
        headers = message.headers
        if REPLAY_GROUP in headers:
            headers = {**headers, REPLAY_GROUP: self.here(headers[REPLAY_GROUP])}
        return message.replace(topic=topic, headers=headers)


class PrefixedDriver:
    """A driver whose topics and groups have a prefix at the broker. What it can do is what that driver can."""

    def __init__(self, driver: Driver, prefix: str) -> None:
        self._driver = driver
        self._prefix = Prefix(prefix)
        self.capabilities = driver.capabilities
        # Protocols are looked for by the names of methods, so there is a method only where the driver has one.
        if isinstance(driver, Listened):
            self.has_listeners = _Listened(driver, self._prefix).has_listeners
        if isinstance(driver, Listing):
            listing = _Listing(driver, self._prefix)
            self.topics, self.groups = listing.topics, listing.groups
        if isinstance(driver, SendsLater):
            self.send_later = _SendsLater(driver, self._prefix).send_later
        if isinstance(driver, Scheduling):
            self.schedule = _Scheduling(driver, self._prefix).schedule
        if isinstance(driver, Cancelling):
            self.cancel = _Cancelling(driver, self._prefix).cancel
        if isinstance(driver, ListingSchedules):
            self.upcoming = _ListingSchedules(driver, self._prefix).upcoming
        if isinstance(driver, Identified):
            self.source = _Identified(driver, self._prefix).source
        if isinstance(driver, Factual):
            self.facts = _Factual(driver, self._prefix).facts

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """Not by itself: a broker puts it before the driver of its URL's scheme."""
        raise ConfigError(f"{url.display}: topic_prefix needs the driver that it stands before")

    async def open(self) -> None:
        """See `Driver.open`."""
        await self._driver.open()
        self.capabilities = self._driver.capabilities  # what is known only once it is there

    async def close(self) -> None:
        """See `Driver.close`."""
        await self._driver.close()

    async def ping(self) -> None:
        """See `Driver.ping`."""
        await self._driver.ping()

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """See `Driver.declare`."""
        there = self._prefix.there
        await self._driver.declare(there(topic), [there(group) for group in groups])

    async def remove(self, topic: str, group: str | None = None) -> None:
        """See `Driver.remove`."""
        there = self._prefix.there
        await self._driver.remove(there(topic), None if group is None else there(group))

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """See `Driver.send`."""
        there = self._prefix.message_there
        return _results(messages, await self._driver.send([there(message) for message in messages]))

    async def subscribe(self, subscription: Subscription) -> "PrefixedReceiver":
        """See `Driver.subscribe`."""
        there, inbox = self._prefix.there, _Inbox(subscription, self._prefix)
        named = replace(
            subscription, topic=there(subscription.topic), group=there(subscription.group), inbox=inbox
        )
        return PrefixedReceiver(await self._driver.subscribe(named), inbox)

    async def lag(self, topic: str, group: str) -> int | None:
        """See `Driver.lag`."""
        return await self._driver.lag(self._prefix.there(topic), self._prefix.there(group))


def _results(messages: Sequence[Message], results: Sequence[Exception | None]) -> Sequence[Exception | None]:
    """What to declare is said by the name that has no prefix."""
    return [
        nobody_listens(message.topic) if isinstance(result, NobodyListens) else result
        for message, result in zip(messages, results, strict=True)
    ]


class _Inbox:
    """Between a driver's receiver and the engine's inbox: deliveries carry our names while the engine has them."""

    def __init__(self, subscription: Subscription, prefix: Prefix) -> None:
        self._inbox: Inbox = subscription.inbox
        self._topic = subscription.topic
        self._prefix = prefix

    def put(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """See `Inbox.put`."""
        for delivery in deliveries:
            delivery.message = self._prefix.message_here(delivery.message, self._topic)
        refused = self._inbox.put(deliveries)
        self.give_back(refused)
        return refused

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """The driver has these again, and may publish what they carry."""
        for delivery in deliveries:
            delivery.message = self._prefix.message_there(delivery.message)

    async def let_go(self, which: Which) -> None:
        """See `Inbox.let_go`."""
        await self._inbox.let_go(which)

    def forget(self, which: Which) -> None:
        """See `Inbox.forget`."""
        self._inbox.forget(which)

    def ailing(self, reason: str | None) -> None:
        """See `Inbox.ailing`."""
        self._inbox.ailing(reason)

    def fail(self, error: Exception) -> None:
        """See `Inbox.fail`."""
        self._inbox.fail(error)


class PrefixedReceiver:
    """A receiver of such a driver. It fetches, is pushed to and marks as the driver's own does."""

    def __init__(self, receiver: Receiver, inbox: _Inbox) -> None:
        self._receiver = receiver
        self._inbox = inbox
        self.quiesce = receiver.quiesce
        self.extend = receiver.extend
        self.overdue = receiver.overdue
        self.close = receiver.close
        if isinstance(receiver, Fetching):
            self.fetch = receiver.fetch
        if isinstance(receiver, Pushed):
            self.credit = receiver.credit
        if isinstance(receiver, Marking):
            self.mark = receiver.mark

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """See `Receiver.settle`: what is released may be published by the driver, and then needs its own names."""
        mine = [(release.delivery, release.delivery.message) for release in released]
        self._inbox.give_back([release.delivery for release in released])
        try:
            await self._receiver.settle(acknowledged, released)
        finally:
            for delivery, message in mine:
                delivery.message = message


class _Listened:
    def __init__(self, driver: Listened, prefix: Prefix) -> None:
        self._driver = driver
        self._prefix = prefix

    async def has_listeners(self, topic: str) -> bool | None:
        """See `Listened`."""
        return await self._driver.has_listeners(self._prefix.there(topic))


class _Listing:
    """What has no prefix belongs to others, and is not listed."""

    def __init__(self, driver: Listing, prefix: Prefix) -> None:
        self._driver = driver
        self._prefix = prefix

    async def topics(self) -> Sequence[str]:
        """See `Listing`."""
        return self._ours(await self._driver.topics())

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """See `Listing`."""
        found = await self._driver.groups([self._prefix.there(topic) for topic in topics])
        return {self._prefix.here(topic): self._ours(groups) for topic, groups in found.items()}

    def _ours(self, names: Sequence[str]) -> list[str]:
        return [self._prefix.here(name) for name in names if self._prefix.is_ours(name)]


class _SendsLater:
    def __init__(self, driver: SendsLater, prefix: Prefix) -> None:
        self._driver = driver
        self._prefix = prefix

    async def send_later(self, copies: Sequence[Later]) -> Sequence[Exception | None]:
        """See `SendsLater`."""
        return await self._driver.send_later([self._there(copy) for copy in copies])

    def _there(self, copy: Later) -> Later:
        prefix = self._prefix
        return replace(copy, message=prefix.message_there(copy.message), group=prefix.there(copy.group))


class _Identified:
    def __init__(self, driver: Identified, prefix: Prefix) -> None:
        self._driver = driver
        self._prefix = prefix

    async def source(self) -> str:
        """See `Identified`; what has another prefix has other topics of the same names."""
        return f"{await self._driver.source()} {self._prefix.prefix}"


class _Scheduling:
    def __init__(self, driver: Scheduling, prefix: Prefix) -> None:
        self._driver = driver
        self._prefix = prefix

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        """See `Scheduling`."""
        there = self._prefix.message_there
        named = [replace(entry, message=there(entry.message)) for entry in entries]
        return _results([entry.message for entry in entries], await self._driver.schedule(named))


class _Cancelling:
    def __init__(self, driver: Cancelling, prefix: Prefix) -> None:
        self._driver = driver
        self._prefix = prefix

    async def cancel(self, topic: str, schedule_id: str) -> bool:
        """See `Cancelling`."""
        return await self._driver.cancel(self._prefix.there(topic), schedule_id)


class _ListingSchedules:
    def __init__(self, driver: ListingSchedules, prefix: Prefix) -> None:
        self._driver = driver
        self._prefix = prefix

    async def upcoming(self, topic: str, limit: int) -> Sequence[Scheduled]:
        """See `ListingSchedules`."""
        here = self._prefix.message_here
        found = await self._driver.upcoming(self._prefix.there(topic), limit)
        return [replace(entry, message=here(entry.message, topic)) for entry in found]


class _Factual:
    def __init__(self, driver: Factual, prefix: Prefix) -> None:
        self._driver = driver
        self._prefix = prefix

    async def facts(self, question: Question) -> Facts:
        """See `Factual`: names are ours in what facts are about; a place, or what was found, is told as the broker has it."""
        prefix = self._prefix
        topic = None if question.topic is None else prefix.there(question.topic)
        group = None if question.group is None else prefix.there(question.group)
        dead_letters = prefix.there(question.dead_letter_group)
        asked = replace(question, topic=topic, group=group, dead_letter_group=dead_letters)
        facts = await self._driver.facts(asked)
        for each in facts.topics:
            each.name = prefix.here(each.name)
            each.others = [prefix.here(name) for name in each.others if prefix.is_ours(name)]
            each.groups = None if each.groups is None else [prefix.here(name) for name in each.groups]
        for found in facts.groups:
            found.name, found.topic = prefix.here(found.name), prefix.here(found.topic)
        facts.findings = [replace(each, subject=self._subject(each.subject)) for each in facts.findings]
        facts.unseen = [(self._subject(subject), why) for subject, why in facts.unseen]
        return facts

    def _subject(self, subject: str) -> str:
        """`topic test-orders` is our `topic orders`."""
        kind, space, name = subject.rpartition(" ")
        return f"{kind}{space}{self._prefix.here(name)}" if space else subject
