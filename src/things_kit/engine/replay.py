"""Reading dead letters: to look at them, to give them up, or to bring them back."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from inspect import isawaitable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from things_kit.engine.cancelling import cancellable, ended
from things_kit.engine.collected import Collecting, collect
from things_kit.engine.dead_letter import failed_at, is_dead_letter, revive
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.engine.leases import keep_leases
from things_kit.engine.looking import MissingError
from things_kit.engine.naming import EPHEMERAL
from things_kit.engine.producer import BrokerProducer
from things_kit.engine.transmission import Transmission
from things_kit.engine.unrun import discard
from things_kit.messaging.errors import BrokerUnavailable, ConfigError, PublishError
from things_kit.messaging.message import Message
from things_kit.messaging.names import DEAD_LETTER_GROUP

if TYPE_CHECKING:
    from things_kit.engine.broker import Broker

ResultT = TypeVar("ResultT")

AT_ONCE: Final = 500
"""Messages that are read, published and acknowledged together."""

MOST: Final = 1_000_000
"""The most messages that are read at a time from a topic whose lag is not known."""

QUIET: Final = 0.5
"""Seconds without a message after which a topic counts as read to its end, where its lag is not known."""

PATIENCE: Final = 5.0
"""The same where its lag says that more is there: others have it in hand, unless the broker only takes its time."""


FOLLOWING: Final = 1.0
"""Seconds for which one question for what is new waits."""


class Replayed(NamedTuple):
    """What a replay did: how many dead letters it brought back, and how many other messages it left alone."""

    brought: int
    others: int


class Reading:
    """Reads a topic as one of its groups until nothing is left; what is not acknowledged goes back at the end."""

    def __init__(
        self, transmission: Transmission, topic: str, group: str | None, *, create: bool | None = None
    ) -> None:
        """A group that is None is one of its own, from the topic's earliest message, that leaves no trace."""
        self.bounded = False
        self._past = group is None
        self._create = transmission.url.engine.declare if create is None else create
        self._transmission = transmission
        self._topic = topic
        self._group = group if group is not None else f"{EPHEMERAL}{uuid.uuid4().hex}"
        self._held: dict[Delivery, None] = {}
        self._receiver: Collecting
        self._leases: asyncio.Task[None]

    async def __aenter__(self) -> "Reading":
        driver, patiently = self._transmission.driver, self._transmission.patiently
        lag = await patiently(lambda: driver.lag(self._topic, self._group))
        self.bounded = lag is not None
        self._most = MOST if lag is None else lag
        subscription = Subscription(
            topic=self._topic,
            group=self._group,
            ephemeral=self._past,
            past=self._past,
            ordering="none",
            max_in_flight=max(self._most, AT_ONCE),  # all of it is held until the end
            create=self._create,
        )
        try:
            self._receiver = await patiently(lambda: collect(driver, subscription))
        except ConfigError as error:
            if self._create:
                raise
            raise MissingError(
                f"{self._topic} cannot be read as the group {self._group!r}: {error}"
            ) from error
        leases = keep_leases(self._receiver.extend, self._held.keys, driver.capabilities.lease)
        self._leases = asyncio.create_task(leases, name="things_kit reading")
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await ended(self._leases)
            with contextlib.suppress(asyncio.CancelledError, ConnectionLost):
                self._leases.result()
            with contextlib.suppress(ConnectionLost):  # then the broker gives them back itself
                await self._receiver.settle(
                    [], [Release(held, attempt=held.message.attempt) for held in self._held]
                )
        finally:
            with contextlib.suppress(ConnectionLost):
                await self._receiver.close()

    async def batches(self, limit: int | None = None) -> AsyncGenerator[list[Delivery], None]:
        """Deliveries until the topic is read to its end, or `limit` were read.

        Raises:
            BrokerUnavailable: The connection was lost; what was not acknowledged comes again.
        """
        left = self._most if limit is None else min(self._most, limit)
        wait = PATIENCE if self.bounded else QUIET
        while left > 0:
            deliveries = await self._answer(self._receiver.receive(min(left, AT_ONCE), wait))
            if not deliveries:
                return  # the rest is in somebody else's hands
            self._held.update(dict.fromkeys(deliveries))
            left -= len(deliveries)
            yield list(deliveries)
            for delivery in deliveries:  # what is held until the end must not fill the memory
                delivery.message = delivery.message.replace(value=b"", headers={})

    async def follow(self) -> AsyncGenerator[list[Delivery], None]:
        """What comes from now on, without end. Raises BrokerUnavailable."""
        while True:
            deliveries = await self._answer(self._receiver.receive(AT_ONCE, FOLLOWING))
            if deliveries:
                self._held.update(dict.fromkeys(deliveries))
                yield list(deliveries)

    async def acknowledge(self, deliveries: list[Delivery]) -> None:
        """Done with these. Raises BrokerUnavailable; then they may come again."""
        await self._answer(self._receiver.settle(deliveries, []))
        for delivery in deliveries:
            del self._held[delivery]

    async def _answer(self, call: Awaitable[ResultT]) -> ResultT:
        try:
            with cancellable():
                return await call
        except ConnectionLost as error:
            raise BrokerUnavailable(
                f"{self._transmission.url.display} was lost while reading: {error}"
            ) from error


async def replay(
    transmission: Transmission,
    topic: str,
    *,
    limit: int | None = None,
    where: Callable[[Message], bool] | None = None,
    to: str | None = None,
    every: bool | None = None,
    create: bool | None = None,
) -> Replayed:
    """Publish dead letters back, then acknowledge them. See `Broker.replay`.

    Args:
        transmission: By which.
        topic: The dead letter's topic.
        limit: The most to replay; None for all.
        where: Called with each dead letter; those for which it is false stay.
        to: Another topic to send them to.
        every: Whether messages that are no dead letters are sent as well; None: if `to` says where to.
        create: Whether the topic and its group may be created; None: as the URL says.
    """
    _check(topic, limit, where, to)
    begun = datetime.now(UTC)
    count = letters = 0
    others: list[str | None] = []
    every = to is not None if every is None else every
    producer = BrokerProducer(transmission, insist=True, any_size=True)
    async with Reading(transmission, topic, DEAD_LETTER_GROUP, create=create) as reading, producer:
        async for deliveries in reading.batches():
            ours = [each for each in deliveries if every or is_dead_letter(each.message)]
            letters += len(ours)
            if len(ours) < len(deliveries):
                others += [each.message.id for each in deliveries if not is_dead_letter(each.message)]
            chosen = [
                delivery
                for delivery in ours
                if (
                    reading.bounded or (failed_at(delivery.message) or begun) <= begun
                )  # else of our own making
                and (where is None or _chosen(where, delivery.message))
            ]
            if limit is not None:
                chosen = chosen[: limit - count]
            count += await _bring_back(producer, reading, chosen, to)
            if limit is not None and count >= limit:
                break
    if others and not letters:
        more = f", and neither are {len(others) - 1} more" if len(others) > 1 else ""
        raise ConfigError(
            f"the message {others[0]!r} in {topic!r} is no dead letter{more}; say with `to` where it goes"
        )
    return Replayed(count, len(others))


def _check(topic: str, limit: object, where: object, to: str | None) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise ConfigError(f"limit must be a whole number from 0, or None; it is {limit!r}")
    if where is not None and not callable(where):
        raise ConfigError(f"where must be a function of a message, or None; it is {where!r}")
    if to == topic:  # what is sent there is no dead letter any more, and would be sent again and again
        raise ConfigError(
            f"to={to!r} names the dead letter that is replayed; without it each goes where it came from"
        )


def _chosen(where: Callable[[Message], bool], message: Message) -> bool:
    """Whether a user's `where` is for this message. Raises ConfigError for one that has yet to be awaited."""
    answer: object = where(message)
    if isawaitable(answer):
        discard(answer)
        raise ConfigError(
            "where must be a plain function: it answered with something that has yet to be awaited"
        )
    return bool(answer)


async def _bring_back(
    producer: BrokerProducer, reading: Reading, chosen: list[Delivery], to: str | None
) -> int:
    messages = [revive(delivery.message, to) for delivery in chosen]
    if not messages:
        return 0
    try:
        await producer.publish_batch(messages)
    except PublishError as error:
        confirmed = [delivery for index, delivery in enumerate(chosen) if index not in error.failures]
        if confirmed:
            await reading.acknowledge(confirmed)
        raise
    await reading.acknowledge(chosen)
    return len(chosen)


async def browse(
    broker: "Broker",
    topic: str,
    *,
    group: str = DEAD_LETTER_GROUP,
    limit: int | None = None,
    create: bool | None = None,
) -> AsyncGenerator[Message, None]:
    """What a group has not acknowledged, oldest first. All of it is given back at the end.

    Close the iterator if you leave it early (`contextlib.aclosing`). Meanwhile nobody else gets these messages.
    """
    async with Reading(broker.transmission, topic, group, create=create) as reading:
        async for deliveries in reading.batches(limit):
            for delivery in deliveries:
                yield delivery.message


async def purge(
    broker: "Broker",
    topic: str,
    *,
    where: Callable[[Message], bool] | None = None,
    group: str = DEAD_LETTER_GROUP,
    create: bool | None = None,
) -> int:
    """Acknowledge what a group has not yet, for good; returns how many. What `where` leaves out stays."""
    count = 0
    async with Reading(broker.transmission, topic, group, create=create) as reading:
        async for deliveries in reading.batches():
            chosen = [each for each in deliveries if where is None or _chosen(where, each.message)]
            if chosen:
                await reading.acknowledge(chosen)
                count += len(chosen)
    return count
