"""Reading dead letters: to look at them, to give them up, or to bring them back."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar

from things_kit.engine.cancelling import cancellable, ended
from things_kit.engine.collected import Collecting, collect
from things_kit.engine.dead_letter import failed_at, revive
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.engine.leases import keep_leases
from things_kit.engine.producer import BrokerProducer
from things_kit.engine.transmission import Transmission
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


class Reading:
    """Reads a topic as one of its groups until nothing is left; what is not acknowledged goes back at the end."""

    def __init__(self, transmission: Transmission, topic: str, group: str) -> None:
        self.bounded = False
        self._transmission = transmission
        self._topic, self._group = topic, group
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
            ordering="none",
            max_in_flight=max(self._most, AT_ONCE),  # all of it is held until the end
            create=self._transmission.url.engine.declare,
        )
        self._receiver = await patiently(lambda: collect(driver, subscription))
        leases = keep_leases(self._receiver, self._held.keys, driver.capabilities.lease)
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
) -> int:
    """Publish dead letters back, then acknowledge them; returns how many. See `Broker.replay`."""
    if limit is not None and limit < 0:
        raise ConfigError(f"limit must be a number from 0, or None; it is {limit!r}")
    begun = datetime.now(UTC)
    count = 0
    producer = BrokerProducer(transmission, insist=True, any_size=True)
    async with Reading(transmission, topic, DEAD_LETTER_GROUP) as reading, producer:
        async for deliveries in reading.batches():
            chosen = [
                delivery
                for delivery in deliveries
                if (
                    reading.bounded or (failed_at(delivery.message) or begun) <= begun
                )  # else of our own making
                and (where is None or where(delivery.message))
            ]
            if limit is not None:
                chosen = chosen[: limit - count]
            count += await _bring_back(producer, reading, chosen, to)
            if limit is not None and count >= limit:
                break
    return count


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
    broker: "Broker", topic: str, *, group: str = DEAD_LETTER_GROUP, limit: int | None = None
) -> AsyncGenerator[Message, None]:
    """What a group has not acknowledged, oldest first. All of it is given back at the end.

    Close the iterator if you leave it early (`contextlib.aclosing`). Meanwhile nobody else gets these messages.
    """
    async with Reading(broker.transmission, topic, group) as reading:
        async for deliveries in reading.batches(limit):
            for delivery in deliveries:
                yield delivery.message


async def purge(
    broker: "Broker",
    topic: str,
    *,
    where: Callable[[Message], bool] | None = None,
    group: str = DEAD_LETTER_GROUP,
) -> int:
    """Acknowledge what a group has not yet, for good; returns how many. What `where` leaves out stays."""
    count = 0
    async with Reading(broker.transmission, topic, group) as reading:
        async for deliveries in reading.batches():
            chosen = [delivery for delivery in deliveries if where is None or where(delivery.message)]
            if chosen:
                await reading.acknowledge(chosen)
                count += len(chosen)
    return count
