"""The bridge: moves messages from one broker to another, and loses none when it is killed."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias
from uuid import uuid4

from things_kit.engine.broker import Broker
from things_kit.engine.collected import collect
from things_kit.engine.dead_letter import dead_letter_topic, make_dead_letter
from things_kit.engine.driver import ConnectionLost, Subscription
from things_kit.messaging.errors import (
    BrokerUnavailable,
    ConfigError,
    MessageTooLarge,
    ThingsKitError,
    UnsupportedError,
)
from things_kit.messaging.handler import Middleware
from things_kit.messaging.message import Message
from things_kit.messaging.names import DEAD_LETTER_GROUP, REPLAY_GROUP
from things_kit.messaging.outcomes import BatchError, Retry
from things_kit.messaging.policy import Batch, RetryPolicy
from things_kit.messaging.topic import Topic
from things_kit.patterns.far_side import Behind, FarSide, hold_back, waves
from things_kit.patterns.publish_names import PublishNames
from things_kit.patterns.routes import routes_of

log = logging.getLogger("things_kit.bridge")

GROUP: Final = "bridge"
RETRY: Final = RetryPolicy(attempts=5, first=1.0, factor=2.0, limit=30.0)

AT_ONCE: Final = 2
"""Batches on their way: while one is being sent the next is gathered; the far side keeps their order."""

DRAIN: Final = 5.0
"""Seconds that a stopping bridge waits for the target's confirmation."""

LOOK: Final = 0.2
"""Seconds between two looks whether anything is left."""

QUIET: Final = 5.0
"""Seconds without a message after which a source counts as empty, where the broker cannot say."""

REMIND: Final = 10.0
"""Seconds after which it is said again what holds the bridge up."""


Told: TypeAlias = Callable[[Message, Exception | None], Awaitable[None]]
"""Is told of a message, and why the target refused it; None where it has it."""


class Bridge:
    """Moves the messages of some topics to another broker, from `start` until `stop`; `async with` does both.

    At least once: a message is acknowledged at the source only after the target has confirmed it. A bridge that is
    killed goes on where it was; what it had in hand may arrive twice. Value, key, headers, id and time stay as they
    are, and messages of one key keep their order; partition and offset are the target's own.

    While the target is away, or has no group for a topic that it would not keep without, the bridge waits. A message that the target refuses is tried again with growing waits,
    for ever; until then its key waits, all others go on, and the log `things_kit.bridge` says so. A message that was
    replayed for the bridge's own group goes on without the header `replay-group`: it is for everybody there.

    Args:
        source: Where messages come from; open.
        target: Where they go; open.
        topics: The topics to move, by name or contract.
        group: As whom the source is read; its position is where a bridge goes on.
        rename: The target's name of a topic, where it is another one.
        target_groups: Groups to declare at the target before the first message.
        dead_letter: A topic of the source for what the target refuses: at once where it is too large, else after
            `retry.attempts`. `{topic}` and `{group}` are filled. None: nothing is given up.
        retry: How long after each other a refused message is tried.
        max_in_flight: The most messages held at once; a quarter of them is moved in one go.
        middleware: Goes around what moves them, in lists, such as a `throttle` with a rate of at least what is moved in one go.
        told: Awaited with each message that the target has now, and None; and once with one that it has refused, and why.
            The next ones wait for it; it must not raise.

    Raises:
        ConfigError: A topic is named twice, `rename` names one that is not moved, or messages would go in circles.
    """

    def __init__(
        self,
        source: Broker,
        target: Broker,
        topics: Sequence[str | Topic[Any]],
        *,
        group: str = GROUP,
        rename: Mapping[str, str] | None = None,
        target_groups: Sequence[str] = (),
        dead_letter: str | None = None,
        retry: RetryPolicy = RETRY,
        max_in_flight: int = 2000,
        middleware: Sequence[Middleware] = (),
        told: Told | None = None,
    ) -> None:
        self.group = group
        self.routes = routes_of(source, target, topics, rename or {})
        self.moved = 0
        self.dead_lettered = 0
        self._source, self._target = source, target
        self._target_groups = tuple(target_groups)
        self._dead_letters = self._dead_letters_of(dead_letter)
        self._retry = retry
        self._told = told
        self._chance = random.Random()  # noqa: S311 - jitter is no secret
        self._far_side = FarSide(target)
        self._producer = source.producer(insist=True)
        self._refusals: dict[object, int] = {}
        self._held_since: dict[object, datetime] = {}
        self._names = PublishNames(source)
        self._said_at: float | None = None
        self._last_came = 0.0
        self._consumer = source.consumer(
            list(self.routes),
            group=group,
            handler=self._carry,
            concurrency=AT_ONCE,
            batch=Batch(size=max(1, max_in_flight // (2 * AT_ONCE)), wait=0.01),
            max_in_flight=max_in_flight,
            middleware=middleware,
            dead_letter=None,
            retry=retry,
            drain_timeout=DRAIN,
        )

    # --- lifecycle

    async def start(self) -> None:
        """Begin; returns once messages can arrive.

        Raises:
            ConfigError: The source has no such topic, or the target cannot have one of that name.
            BrokerUnavailable: One of the two was not there for its `publish_timeout`.
        """
        for topic in self.routes:
            await self._expect(topic)
        await self._names.open()
        for topic in dict.fromkeys(self.routes.values()):
            if self._target_groups or self._target.url.engine.declare:
                await self._target.declare(topic, self._target_groups)
        for dead_letter in self._dead_letters.values():
            await self._source.declare(dead_letter, [DEAD_LETTER_GROUP])
        self._last_came = asyncio.get_running_loop().time()
        await self._consumer.start()

    async def stop(self) -> None:
        """Wait a few seconds for the target to confirm what is on its way; the rest stays. Idempotent."""
        await self._consumer.stop()

    async def wait(self) -> None:
        """Wait until it has stopped. Raises what broke it."""
        await self._consumer.wait()

    async def until_empty(self) -> None:
        """Wait until the group has nothing left at the source, and all of it is confirmed by the target.

        Where the source cannot say how much is left: until nothing came for five seconds. Raises what broke it.
        """
        stopped = asyncio.create_task(self.wait())
        try:
            while not await self._is_empty():
                if (await asyncio.wait({stopped}, timeout=LOOK))[0]:
                    return stopped.result()
        finally:
            if not stopped.cancel():
                stopped.exception()  # it was raised above, or came too late to matter

    async def __aenter__(self) -> "Bridge":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # --- how it is

    @property
    def held(self) -> int:
        """How many messages the target has refused so far; they are tried again, and their keys wait."""
        return len(self._refusals)

    @property
    def trouble(self) -> str | None:
        """What holds the bridge up at the moment; None if nothing does."""
        return self._far_side.trouble or self._consumer.health().reason

    @property
    def age(self) -> float:
        """For how many seconds the oldest message that is in hand or refused has been published; 0 where there is none."""
        now = datetime.now(UTC)
        refused = ((now - published).total_seconds() for published in self._held_since.values())
        return max(*self._consumer.ages().values(), *refused, 0.0)

    async def lag(self) -> int | None:
        """How many messages are left at the source, those in hand included; None where the broker cannot say.

        Raises BrokerUnavailable.
        """
        lags = [await self._source.lag(topic, self.group) for topic in self.routes]
        return None if None in lags else sum(lag for lag in lags if lag is not None)

    async def _is_empty(self) -> bool:
        if self._refusals or self._consumer.health().in_flight:
            return False
        try:
            lag = await self.lag()
        except BrokerUnavailable:
            return False
        quiet = asyncio.get_running_loop().time() - self._last_came
        if lag is None:
            return quiet >= QUIET
        if lag and quiet >= REMIND and self._due():
            log.warning(
                "%s counts %d as left for the group %r, but none has come for %.0f s: another consumer may hold them, "
                "or the broker counts what is no message",
                self._source.url.display, lag, self.group, quiet,
            )  # fmt: skip
        return lag == 0

    # --- what is done with messages

    async def _carry(self, messages: list[Message]) -> None:
        """Handle a batch: all that does not fail here is confirmed by the target, or a confirmed dead letter."""
        outgoing = [self._outgoing(message) for message in messages]
        results: list[Exception | None] = [None] * len(messages)
        for wave in waves(outgoing):
            going = [index for index in wave if results[index] is None]
            published = await self._far_side.publish(
                [outgoing[index] for index in going], [self._names.of(messages[index]) for index in going]
            )
            if any(published):
                for index, result in zip(going, published, strict=True):
                    results[index] = result
                hold_back(outgoing, results)
        self._last_came = asyncio.get_running_loop().time()
        self.moved += results.count(None)
        if self._refusals:
            for message, result in zip(messages, results, strict=True):
                if result is None:
                    self._refusals.pop(_identity(message), None)
                    self._held_since.pop(_identity(message), None)
        if self._told is not None:
            for message, result in zip(messages, results, strict=True):
                if result is None:
                    await self._told(message, None)
        if any(results) and (again := await self._refused(messages, results)):
            raise BatchError(again)

    def _outgoing(self, message: Message) -> Message:
        headers = message.headers
        if headers.get(REPLAY_GROUP) == self.group:
            headers = {name: text for name, text in headers.items() if name != REPLAY_GROUP}
        return Message(
            self.routes[message.topic],
            message.value,
            message.key,
            headers,
            timestamp=message.timestamp,
            id=message.id,
            attempt=message.attempt,
        )

    async def _refused(
        self, messages: Sequence[Message], results: Sequence[Exception | None]
    ) -> dict[int, BaseException]:
        """When each of those that the target has not is to come again; its lane keeps them in order until then."""
        again: dict[int, BaseException] = {}
        for index, (message, error) in enumerate(zip(messages, results, strict=True)):
            if isinstance(error, Behind):
                self._names.change(message)
                again[index] = Retry(0.0)
            elif error is not None:
                number = self._refusals[_identity(message)] = self._refusals.get(_identity(message), 0) + 1
                if number == 1 and self._told is not None:
                    await self._told(message, error)
                if await self._is_buried(message, error, number):
                    del self._refusals[_identity(message)]
                    self._held_since.pop(_identity(message), None)
                else:
                    self._held_since[_identity(message)] = message.timestamp or datetime.now(UTC)
                    again[index] = Retry(self._retry.wait(number, self._chance))
                    self._say(message, error)
        return again

    async def _is_buried(self, message: Message, error: Exception, number: int) -> bool:
        """Whether the message has become a dead letter now."""
        dead_letter = self._dead_letters.get(message.topic)
        if dead_letter is None or (
            number < self._retry.attempts and not isinstance(error, (MessageTooLarge, *self._retry.permanent))
        ):
            return False
        dead = make_dead_letter(
            message.replace(attempt=number),
            topic=dead_letter,
            group=self.group,
            error=error,
            limit=self._source.capabilities.dead_letter_bytes,
        )
        try:
            await self._producer.publish(dead)
        except ThingsKitError as failure:
            log.error("the dead letter of message %r was not published: %s; it is kept", message.id, failure)  # noqa: TRY400 - the sentence says it all
            return False
        log.error(
            "message %r of %s was refused and is in %s now: %s", message.id, message.topic, dead_letter, error
        )
        self.dead_lettered += 1
        return True

    def _say(self, message: Message, error: Exception) -> None:
        """Say that messages are held: of the first, and then from time to time."""
        if self._due():
            log.warning(
                "%s refuses message %r of %s: %s; it is tried again and again, and its key waits (held: %d)",
                self._target.url.display, message.id, message.topic, error, self.held,
            )  # fmt: skip

    def _due(self) -> bool:
        """Whether it is time to say again what holds the bridge up."""
        now = asyncio.get_running_loop().time()
        due = self._said_at is None or now - self._said_at >= REMIND
        if due:
            self._said_at = now
        return due

    # --- parts

    def _dead_letters_of(self, template: str | None) -> dict[str, str]:
        if template is None:
            return {}
        names = {topic: dead_letter_topic(template, topic, self.group) for topic in self.routes}
        moved = next((name for name in names.values() if name in self.routes), None)
        if moved is not None:
            raise ConfigError(
                f"the dead letter {moved!r} is itself a topic to be moved; it needs another name"
            )
        return names

    async def _expect(self, topic: str) -> None:
        """A misspelt topic would come into being, and be empty for ever."""
        driver = self._source.transmission.driver
        look = Subscription(
            topic=topic,
            group=f"bridge-looks-{uuid4().hex}",
            ephemeral=True,
            start="latest",
            ordering="none",
            max_in_flight=1,
            create=False,
        )
        try:
            receiver = await self._source.transmission.patiently(lambda: collect(driver, look))
        except UnsupportedError:  # it cannot have such a group; then nobody can tell
            return
        except ConfigError as error:
            raise ConfigError(f"{self._source.url.display}: {error}") from error
        with contextlib.suppress(ConnectionLost):
            await receiver.close()


def _identity(message: Message) -> object:
    return message.topic, message.partition, message.offset, message.id
