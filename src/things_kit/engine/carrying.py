"""The carrier: takes messages on that wait in topics of the engine's (see `wait_topics`), until they are due.

Every process with a consumer carries for all others of the broker. Where nothing was ever scheduled, and so there are no
such topics, it costs a look every now and then.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from things_kit.engine.cancelling import ended
from things_kit.engine.clock import steady
from things_kit.engine.consumer import BrokerConsumer
from things_kit.engine.options import ConsumerOptions
from things_kit.engine.pump import Pump
from things_kit.engine.retry_pump import WaitingPump
from things_kit.engine.transmission import Transmission
from things_kit.engine.wait_topics import (
    CARRIER,
    DEAD_LETTER,
    WAITS,
    lease_for,
    put_off,
    wait_topics,
    waiting,
)
from things_kit.messaging.errors import BrokerUnavailable, ConfigError, DecodeError
from things_kit.messaging.message import Message
from things_kit.messaging.outcomes import BatchError, Later
from things_kit.messaging.policy import Batch, RetryPolicy

log = logging.getLogger("things_kit.carrier")

LOOK: Final = 10.0
"""Seconds between two looks for the topics, and until a carrier that broke begins anew."""

HELD: Final = 1000
"""The most messages of one wait that a process has with it: of more than that in a second or two, some come late."""

BEAT: Final = 0.001
"""Seconds that are added to a wait, as clocks are read one after the other: nothing is ever early."""

SIZE: Final = 250
"""The most messages that are carried on by one call."""

AGAIN: Final = 1.0
"""Seconds until what a broker that is away did not take is tried again."""

REFUSED: Final = RetryPolicy(attempts=5, first=1.0, limit=30.0)
"""What a target does not take is tried again, and then a dead letter: the others go on meanwhile."""


class Carrying:
    """Carries for one broker, from its first consumer until it is closed. A fault of it is its own."""

    def __init__(self, transmission: Transmission) -> None:
        self._transmission = transmission
        self._carrier: Carrier | None = None
        self._running: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """A consumer has started."""
        if self._running is None and self._transmission.driver.capabilities.carried:
            self._running = asyncio.create_task(self._run(), name="things_kit carrying")

    async def close(self) -> None:
        """Stop; what waits is others' to carry."""
        if self._running is not None:
            await ended(self._running)
        if self._carrier is not None:
            await self._carrier.stop()

    async def _run(self) -> None:
        while True:
            self._carrier = Carrier(self._transmission)
            try:
                await self._carrier.start()
                await self._carrier.wait()
            except Exception as error:  # noqa: BLE001 - whatever it is, consumers go on
                log.warning("nothing is carried on for %.0f s: %s", LOOK, error)
                await self._carrier.stop()
            await asyncio.sleep(LOOK)


class CarrierPump(WaitingPump):
    """Holds what arrives until its wait is over; subscribes once there is something to subscribe to.

    `first` is that of the shortest wait: the others wait for its topic. `look` says that it is time to look for it.
    """

    first: Pump
    look: asyncio.Event
    _said = ""

    async def run(self) -> None:
        """Look for the topic every now and then, until it is there; then receive. Raises what cannot be mended."""
        if self.first is not self:
            await self.first.subscribed.wait()
        while not self._stopping:
            try:
                await super().run()
            except ConfigError as error:
                self._say_once(error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await self.look.wait()
                        self.look.clear()

    def _say_once(self, error: ConfigError) -> None:
        """That the topic is not there is the usual case; what the broker refuses should be seen."""
        level = logging.DEBUG if error.__cause__ is None or str(error) == self._said else logging.INFO
        self._said = str(error)
        log.log(level, "nothing is carried on from %r: %s", self.subscription.topic, error)

    @property
    def _lease(self) -> float | None:
        lease = super()._lease
        return None if lease is None else lease_for(self.subscription.topic, lease)

    def _wait_of(self, message: Message) -> tuple[float, float | None]:
        try:
            until = waiting(message.value).until
        except msgspec.DecodeError:
            return 0.0, None  # the handler says what is wrong with it
        return until - steady() + BEAT, until

    def _went_away(self, error: Exception) -> None:
        """Consumers say it already."""
        self.away = error


class Carrier(BrokerConsumer):
    """Writes what it takes up to the next topic, confirmed before it is acknowledged."""

    _pump_kind = CarrierPump

    def __init__(self, transmission: Transmission) -> None:
        native = transmission.driver.capabilities
        self._partitions = native.partitions
        self._first: Pump | None = None
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        options = ConsumerOptions(
            topics=tuple(wait_topics(partitions=native.partitions)),
            handler=self.carry,
            group=CARRIER,
            concurrency=4,
            ordering="none",
            retry=REFUSED,
            dead_letter=DEAD_LETTER,
            drain_timeout=5.0,
            max_in_flight=HELD * len(WAITS),
            batch=Batch(min(SIZE, native.max_batch), 0.0),
        )
        super().__init__(transmission, options)

    async def carry(self, messages: list[Message]) -> None:
        """A wait is over. Raises BatchError for those that nobody took."""
        errors: dict[int, BaseException] = {}
        going: dict[str, dict[int, Message]] = {}
        for index, message in enumerate(messages):
            try:
                following = self._next(message)
            except DecodeError as error:
                errors[index] = error
            else:
                going.setdefault(following.topic, {})[index] = following
        for refused in await asyncio.gather(*(self._send(*each) for each in going.items())):
            errors |= refused
        if errors:
            raise BatchError(errors)

    def _next(self, message: Message) -> Message:
        """What is to be published now. Raises DecodeError."""
        try:
            found = waiting(message.value)
        except msgspec.DecodeError as error:
            raise DecodeError(f"what is in {message.topic!r} was not scheduled by us: {error}") from error
        if found.due <= steady():
            return found.message
        return put_off(found.message, found.due, partitions=self._partitions)

    async def _send(self, topic: str, messages: Mapping[int, Message]) -> dict[int, BaseException]:
        """The errors of those that were not taken. One topic holds up no other, and keeps the order of what goes there."""
        async with self._turns.setdefault(topic, asyncio.Lock()):
            deadline = asyncio.get_running_loop().time() + self._transmission.url.engine.publish_timeout
            results = await self._transmission.send(list(messages.values()), deadline)
        return {
            index: Later(AGAIN) if isinstance(refusal, BrokerUnavailable) else refusal
            for index, refusal in zip(messages, results, strict=True)
            if refusal is not None
        }

    async def _declare(self) -> None:
        """Who schedules does that: where nothing was scheduled nothing is made."""

    async def _subscribed(self) -> None:
        """Nobody waits for that: it may be long until something is scheduled."""

    def _make_pumps(self, topic: str) -> list[Pump]:
        pumps = super()._make_pumps(topic)
        for pump in pumps:
            pump.subscription = msgspec.structs.replace(pump.subscription, create=False)
            assert isinstance(pump, CarrierPump)  # noqa: S101 - its kind is ours
            pump.look = self._transmission.carries
            self._first = self._first or pump
            pump.first = self._first
        return pumps
