"""The broker: what `connect` returns, and where producers and consumers come from."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar, Unpack, cast, overload
from weakref import WeakSet

from things_kit.engine.blocking import BlockingProducer
from things_kit.engine.cancelling import Shared, abandon
from things_kit.engine.carrying import Carrying
from things_kit.engine.consumer import BrokerConsumer
from things_kit.engine.driver import Capabilities, Driver
from things_kit.engine.naming import check_name
from things_kit.engine.options import ConsumerArguments, ContractArguments, options_of, takes_arguments
from things_kit.engine.prefixed import PrefixedDriver
from things_kit.engine.producer import BrokerProducer
from things_kit.engine.replay import replay
from things_kit.engine.requests import Requests, decode_reply, reply_decoder
from things_kit.engine.retry_topics import retry_topics
from things_kit.engine.scheduling import cancel, schedules
from things_kit.engine.transmission import Transmission
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ClosedError, ConfigError
from things_kit.messaging.handler import AnyHandler, TopicBatchHandler, TopicHandler
from things_kit.messaging.health import Health
from things_kit.messaging.instrument import Instrument
from things_kit.messaging.message import Message
from things_kit.messaging.plain import plain
from things_kit.messaging.policy import Batch, Seconds
from things_kit.messaging.producer import Fields, message_to_publish
from things_kit.messaging.schedule import Schedule
from things_kit.messaging.topic import UNSET, Topic, topic_name
from things_kit.messaging.transform import Transform, checked_transforms

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("things_kit.broker")

CLOSE: Final = 4.0
"""Seconds that flushing and disconnecting may take once the consumers have stopped."""

LEAVE: Final = 1.0
"""Seconds of these that are kept for disconnecting."""


class Broker:
    """A connection to one broker; enter it with `async with`, or call `open` and `close`.

    `transmission` is the engine's own way to the driver, for patterns that are built on it.
    """

    def __init__(self, driver: Driver, url: BrokerURL) -> None:
        self.url = url
        self._kind = type(driver)
        self._driver = PrefixedDriver(driver, url.engine.topic_prefix) if url.engine.topic_prefix else driver
        self.transmission = Transmission(self._driver, url)
        self._opening = Shared(self._connect, f"{self!r} open")
        self._open = False
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._consumers: dict[BrokerConsumer, None] = {}
        self._producers: WeakSet[BrokerProducer] = WeakSet()
        self._requests = Requests(self.transmission)
        self._carrying = Carrying(self.transmission)

    def __repr__(self) -> str:
        return f"<Broker {self.url.display}>"

    @property
    def capabilities(self) -> Capabilities:
        """What this broker has natively, and in `.emulated` what the engine provides instead."""
        return self._driver.capabilities

    # --- lifecycle

    async def open(self) -> None:
        """Connect. Opening twice is fine.

        Raises:
            BrokerUnavailable: The broker was not there for `publish_timeout`.
            ConfigError: It is there, but is not what the URL says, or does not let us in.
        """
        self.transmission.check_loop()
        if self._closed:
            raise ClosedError(f"{self!r} is closed")
        if self._open:
            return
        await self._opening.made()
        if self._closed:
            raise ClosedError(f"{self!r} was closed while it opened")

    async def _connect(self) -> None:
        await self.transmission.open()
        self._open = True

    async def close(self) -> None:
        """Stop the consumers side by side, flush and close the producers, disconnect. Closing twice is fine.

        What the broker has not confirmed a few seconds after the consumers have stopped is `BrokerUnavailable` for who
        publishes it. A handler may close the broker: this returns at once, and disconnects when its message is settled.
        """
        self.transmission.check_loop()
        self._closed = True
        task = asyncio.current_task()
        ours = [consumer for consumer in self._consumers if consumer.runs_in(task)]
        for consumer in ours:
            await consumer.stop()  # which does not wait for its own handler, and begins no other from here on
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"{self!r} close")
        if ours:
            self._closing.add_done_callback(self._closed_unseen)
        else:
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._opening.end()
        loop = asyncio.get_running_loop()
        errors: list[BaseException] = []
        try:
            stops = [consumer.stop() for consumer in self._consumers]
            errors += await _failures([*stops, self._carrying.close()])
        finally:
            ends = loop.time() + CLOSE
            errors += await _failures([self._requests.close()])
            try:
                errors += await _failures(producer.close(CLOSE - LEAVE) for producer in list(self._producers))
            finally:
                errors += await self._disconnect(max(LEAVE, ends - loop.time()))
        for other in errors[1:]:
            log.error("while %r closed, as well: %s", self, other, exc_info=other)
        if errors:
            raise errors[0]

    async def _disconnect(self, within: float) -> list[BaseException]:
        """Close the driver; returns what that raised. One that does not end in time is left to itself."""
        closing = asyncio.create_task(self._driver.close(), name=f"{self!r} disconnect")
        done, _ = await asyncio.wait({closing}, timeout=within)
        if not done:
            abandon(closing)
            log.warning("%r did not disconnect within %.0f s; its connection is left to itself", self, within)
            return []
        error = None if closing.cancelled() else closing.exception()
        return [] if error is None else [error]

    def _closed_unseen(self, closing: asyncio.Task[None]) -> None:
        if not closing.cancelled() and (error := closing.exception()) is not None:
            log.error("%r did not close cleanly: %s", self, error, exc_info=error)

    async def __aenter__(self) -> "Broker":
        try:
            await self.open()
        except BaseException:
            with contextlib.suppress(Exception):
                await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- topics

    async def declare(self, topic: str | Topic[Any], groups: Sequence[str] = ()) -> None:
        """Create the topic, and groups that begin at its earliest message, where they are missing.

        Raises:
            ConfigError: The broker cannot have a topic or group of that name.
            BrokerUnavailable: The broker stayed away for longer than `publish_timeout`.
        """
        self._check_open()
        if isinstance(groups, str | bytes) or not isinstance(groups, Iterable):
            raise ConfigError(f"groups must be a list of names; it is {groups!r}")
        topic, groups = topic_name(topic), tuple(map(plain, groups))
        check_name("topic", topic)
        for group in groups:
            check_name("group", group)
        await self.transmission.declare(topic, groups)

    async def remove(self, topic: str | Topic[Any], group: str | None = None) -> None:
        """Delete a topic with its messages and groups; or one group alone, so that it holds back nothing for ever.

        What is missing is fine. A consumer of it that runs makes it anew. Raises BrokerUnavailable.
        """
        self._check_open()
        topic = topic_name(topic)
        check_name("topic", topic)
        if group is not None:
            check_name("group", group)
        group = plain(group)
        await self._remove(topic, group)
        for retries in self._retry_topics(topic, group):
            await self._remove(retries, None)

    async def _remove(self, topic: str, group: str | None) -> None:
        self.transmission.forget(topic, group)
        await self.transmission.patiently(lambda: self._driver.remove(topic, group))

    def _retry_topics(self, topic: str, group: str | None) -> list[str]:
        """Where a group puts aside what it tries again later, on a broker without delays."""
        return [] if group is None or self.capabilities.delay else retry_topics(topic, group)

    async def lag(self, topic: str | Topic[Any], group: str) -> int | None:
        """How many messages a group has not yet acknowledged, retries included; None where the broker cannot say.

        Raises BrokerUnavailable.
        """
        self._check_open()
        topic = topic_name(topic)
        check_name("topic", topic)
        check_name("group", group)
        group = plain(group)
        total = 0
        for each in (topic, *self._retry_topics(topic, group)):
            lag = await self.transmission.patiently(functools.partial(self._driver.lag, each, group))
            if lag is None:
                return None
            total += lag
        return total

    async def cancel(self, topic: str | Topic[Any], schedule_id: str) -> bool:
        """Have a scheduled message not come: True if it will not, False if it is too late, or there is none of that name.

        Raises:
            ConfigError: The `schedule_id` can be none.
            UnsupportedError: The broker knows no `schedule_id`.
            BrokerUnavailable: The broker stayed away for longer than `publish_timeout`.
        """
        self._check_open()
        return await cancel(self.transmission, topic_name(topic), plain(schedule_id))

    async def schedules(self, topic: str | Topic[Any], limit: int = 100) -> list[Schedule]:
        """What is to come in a topic, soonest first, also what has no `schedule_id`.

        Raises:
            ConfigError: `limit` is no whole number from 1.
            UnsupportedError: The broker cannot say.
            BrokerUnavailable: The broker stayed away for longer than `publish_timeout`.
        """
        self._check_open()
        return await schedules(self.transmission, topic_name(topic), limit)

    async def replay(
        self,
        topic: str,
        limit: int | None = None,
        where: Callable[[Message], bool] | None = None,
        to: str | Topic[Any] | None = None,
    ) -> int:
        """Publish dead letters back to where they came from, for the group that failed; returns how many.

        Each is acknowledged in the dead letter only after its publish is confirmed. Dead letters that come while
        this runs are left for the next time.

        Args:
            topic: The dead letter's topic.
            limit: The most to replay; None for all.
            where: Called with each dead letter; those for which it is false stay.
            to: Another topic to send them to, for all of its groups.

        Raises:
            BrokerUnavailable, PublishError: What was not confirmed stays in the dead letter.
            ConfigError: None of the messages there is a dead letter, or one does not say where it came from, and `to`
                does not say where it goes. Beside dead letters, other messages stay where they are. Or an argument is
                not what it should be.
        """
        self._check_open()
        if isinstance(topic, Topic):
            raise ConfigError(f"replay takes the name of a dead letter, not the contract {topic!r}")
        check_name("topic", topic)
        if to is not None:
            to = topic_name(to)
            check_name("to", to)
        return (await replay(self.transmission, topic, limit=limit, where=where, to=to)).brought

    async def health(self) -> Health:
        """Whether the broker answers and every consumer gets on."""
        self.transmission.check_loop()
        consumers = tuple(consumer.health() for consumer in self._consumers)
        reason = await self._trouble()
        if reason is None:
            ill = (
                f"{', '.join(c.topics)} as {c.group}: {c.reason}" for c in consumers if c.reason is not None
            )
            reason = next(ill, None)
        return Health(ok=reason is None, reason=reason, consumers=consumers)

    @property
    def consumers(self) -> tuple[BrokerConsumer, ...]:
        """Those that have started and not stopped; one that broke is among them until it is stopped."""
        return tuple(self._consumers)

    async def _trouble(self) -> str | None:
        if self._closed or not self._open:
            return f"{self.url.display} is not open"
        error = await self.transmission.trouble()
        return None if error is None else f"{self.url.display}: {error}"

    # --- producers and consumers

    def instrument(self, *instruments: Instrument) -> None:
        """Let these, such as tracing and metrics, wrap what is sent and handled, the first outermost.

        It concerns the producers and consumers that are made from now on. Where nothing is said, nothing is paid.
        """
        self.transmission.instruments += instruments

    def producer(self, *, transforms: Sequence[Transform] = (), insist: bool = False) -> BrokerProducer:
        """A producer, closed with the broker. Raises ClosedError, or ConfigError for what is no transform.

        Args:
            transforms: What is done to values before they are sent, from left to right, such as `compress()`.
            insist: For what must not get lost: a topic that no group has, on a broker that would drop the message, is
                an outage, which `publish` waits out for `publish_timeout`, instead of `NobodyListens` at once; and a dead
                letter may have 2 KiB more than other messages.
        """
        self._check_state()
        producer = BrokerProducer(self.transmission, insist=insist, transforms=checked_transforms(transforms))
        self._producers.add(producer)
        return producer

    @overload
    async def request(self, message: Message, *, timeout: Seconds = ...) -> Message: ...

    @overload
    async def request(self, message: Message, *, reply: type[R], timeout: Seconds = ...) -> R: ...

    @overload
    async def request(
        self,
        topic: Topic[T],
        payload: T,
        /,
        *,
        reply: type[R],
        timeout: Seconds = ...,
        **fields: Unpack[Fields],
    ) -> R: ...

    @overload
    async def request(
        self, topic: Topic[T], payload: T, /, *, timeout: Seconds = ..., **fields: Unpack[Fields]
    ) -> Any: ...

    async def request(
        self,
        message: Message | Topic[Any],
        payload: Any = UNSET,
        *,
        reply: Any = UNSET,
        timeout: Seconds = 30.0,
        **fields: Any,
    ) -> Any:
        """Publish a message, and return what its handler returns.

        Args:
            message: The message, or a Topic.
            payload: What the topic's message carries.
            reply: The type of the reply; by the topic's contract where that says one, else the reply's Message.
            timeout: Seconds until there must be a reply, once the inbox for replies is there. It is the deadline
                too, after which no handler begins with it.
            fields: With a Topic, as `Topic.message` takes them: key, headers, id, timestamp.

        Raises:
            RemoteError: Its handler has failed for good.
            TimeoutError: There was no reply in time. The request may still be handled.
            DecodeError: The reply is not of that type.
            PublishError, BrokerUnavailable: As for a producer's publish.
            ClosedError: The broker was closed meanwhile.
        """
        self.transmission.check_loop()
        if not self._open or self._requests.closed:
            self._check_state()
        if isinstance(message, Topic):
            reply = message.reply if reply is UNSET and message.reply is not None else reply
            await self.transmission.prepare(message)
        decode = reply_decoder(Message if reply is UNSET else reply)
        answer = await self._requests.ask(message_to_publish(message, payload, fields, "request"), timeout)
        return await decode_reply(decode, answer)

    def blocking(self, *, transforms: Sequence[Transform] = ()) -> BlockingProducer:
        """A producer for code that is not async, such as Django's or Flask's: `with connect(url).blocking() as producer:`.

        It has a thread, an event loop and a connection of its own, which are there once it is used or entered.
        """
        url, kind, instruments = self.url, self._kind, self.transmission.instruments

        def make() -> Broker:
            broker = Broker(kind.from_url(url), url)
            broker.instrument(*instruments)
            return broker

        return BlockingProducer(make, checked_transforms(transforms))

    @overload
    def consumer(
        self,
        topic: Topic[T],
        *,
        handler: TopicHandler[T],
        batch: None = None,
        **arguments: Unpack[ContractArguments],
    ) -> BrokerConsumer: ...

    @overload
    def consumer(
        self,
        topic: Topic[T],
        *,
        handler: TopicBatchHandler[T],
        batch: Batch,
        **arguments: Unpack[ContractArguments],
    ) -> BrokerConsumer: ...

    @overload
    def consumer(
        self,
        topic: str | Sequence[str | Topic[Any]],
        *,
        handler: AnyHandler,
        **arguments: Unpack[ConsumerArguments],
    ) -> BrokerConsumer: ...

    @takes_arguments
    def consumer(self, topic: Any, *, handler: AnyHandler, **arguments: Any) -> BrokerConsumer:
        """A consumer, not yet started; stopped with the broker.

        Args:
            topic: A topic by its name or its contract, or several.
            handler: An object with `handle`, an async function, or a plain one, which runs in a thread.
            group: The consumer group, whose consumers share the messages. It has no default: None, said on purpose, is
                a group of its own from now on, gone when it stops.
            concurrency: Handler calls at once.
            publish: The contract of what the handler returns: it is published there, and confirmed before the message is
                acknowledged. None is nothing, a list several, unless the topic's payload is a list.
            ordering: What is handled one after another, in order: messages of one "key", of one "partition"
                (the whole topic where there are none), or nothing, "none".
            start: Where a new group begins on a broker that retains messages.
            retry: How often and when a failing message is tried again.
            dead_letter: Where messages go that failed for good; None keeps trying at the policy's limit; DISCARD
                logs, counts and acknowledges them.
            timeout: The most one handler call may take, in seconds; None for no bound.
            drain_timeout: How long `stop` lets begun handlers go on, in seconds.
            max_in_flight: The most messages held at once, over all topics.
            batch: Hand the handler lists of messages.
            middleware: Functions from Handle to Handle, outermost first.
            transforms: What was done to values, such as `compress()`: it is undone before they are decoded.
            arguments: All of these but the first two.

        Raises:
            ConfigError: An argument is not what it should be, or the group is missing.
            ClosedError: The broker is closed.
        """
        if self._closed:
            raise ClosedError(f"{self!r} is closed")
        options = options_of(topic, handler, cast("ConsumerArguments", arguments))
        return BrokerConsumer(
            self.transmission,
            options,
            instruments=self.transmission.instruments,
            started=self._consumer_started,
            ended=self._consumer_ended,
        )

    def _consumer_started(self, consumer: BrokerConsumer) -> None:
        self._check_open()
        self._consumers[consumer] = None
        self._carrying.begin()

    def _consumer_ended(self, consumer: BrokerConsumer) -> None:
        self._consumers.pop(consumer, None)

    def _check_open(self) -> None:
        self.transmission.check_loop()
        self._check_state()

    def _check_state(self) -> None:
        if self._closed:
            raise ClosedError(f"{self!r} is closed")
        if not self._open:
            raise ClosedError(f"{self!r} is not open: use `async with`, or await its open()")


async def _failures(calls: Iterable[Awaitable[None]]) -> list[BaseException]:
    """Wait for all of them, side by side; returns what they raised."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [result for result in results if result is not None]
