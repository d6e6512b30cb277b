"""Sending through a driver: declares what is missing, waits out an outage, and ends in time."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Final, TypeAlias, TypeVar
from uuid import uuid4

from things_kit.engine.backoff import Backoff
from things_kit.engine.cancelling import cancellable, ended
from things_kit.engine.collected import collect
from things_kit.engine.driver import ConnectionLost, Driver, Listened, Subscription, UnknownTopic
from things_kit.engine.listeners import HasListeners, Listeners, Unheard
from things_kit.engine.naming import looks_like_pattern
from things_kit.engine.reasons import reason_of
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import (
    BrokerUnavailable,
    ConfigError,
    NobodyListens,
    PublishError,
    ThingsKitError,
    UnsupportedError,
)
from things_kit.messaging.instrument import Instrument
from things_kit.messaging.message import Message
from things_kit.messaging.topic import Topic

log = logging.getLogger("things_kit.broker")

FIRST_WORD: Final = 1.5
"""Seconds after which a broker that is not there at the start is reported."""

NEXT_WORD: Final = 10.0
"""Seconds between two such reports."""

PING_TIMEOUT: Final = 5.0
"""Seconds after which a broker that does not answer is reported as not well."""

ResultT = TypeVar("ResultT")

Sending: TypeAlias = Callable[[Sequence[Message]], Awaitable[Sequence[Exception | None]]]
"""`Driver.send`, or what hands messages to the driver in another way."""


class Transmission:
    """A driver's calls as a broker's users see them: `BrokerUnavailable` in time instead of `ConnectionLost`."""

    def __init__(self, driver: Driver, url: BrokerURL) -> None:
        self.driver = driver
        self.url = url
        self.away: Exception | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.instruments: tuple[Instrument, ...] = ()
        self.carries = asyncio.Event()  # there are topics to carry on from: see wait_topics
        self._declared: dict[str, set[str]] = {}
        self._prepared: set[Topic[Any]] = set()
        self._listeners = Listeners(url.display)
        self._unheard_of = Unheard(url.display)
        self._has_listeners = driver.has_listeners if isinstance(driver, Listened) else None

    async def open(self) -> None:
        """Connect, for the event loop that runs. Raises BrokerUnavailable, ConfigError."""
        self.loop = asyncio.get_running_loop()
        telling = asyncio.create_task(self._tell_of_absence(), name=f"{self.url.display} away")
        try:
            await self.patiently(self.driver.open)
        except BaseException:
            self.loop = None
            raise
        finally:
            await ended(telling)

    async def _tell_of_absence(self) -> None:
        """Say soon that the broker is not there, and why, and again as long as it is waited for."""
        wait, began = FIRST_WORD, asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(wait)
            wait = NEXT_WORD
            left = self.url.engine.publish_timeout - (asyncio.get_running_loop().time() - began)
            why = reason_of(self.away) if self.away is not None else "it does not answer"
            log.warning(
                "%s is not there: %s; waiting for it for another %.0f s",
                self.url.display,
                why,
                max(0.0, left),
            )

    def check_loop(self) -> None:
        """Raise ConfigError in an event loop other than the one that the driver was opened for."""
        if self.loop is not None and asyncio.get_running_loop() is not self.loop:
            raise ConfigError(
                f"{self.url.display} was opened in another event loop: open a broker in each loop that uses one"
            )

    async def prepare(self, topic: Topic[Any]) -> None:
        """Get what a topic's codec needs, once. Raises BrokerUnavailable after `publish_timeout`, ConfigError."""
        if topic in self._prepared:
            return
        loop, timeout = asyncio.get_running_loop(), self.url.engine.publish_timeout
        deadline, backoff = loop.time() + timeout, Backoff()
        last: BrokerUnavailable | None = None
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await topic.prepare()
            except (BrokerUnavailable, TimeoutError) as error:
                last = error if isinstance(error, BrokerUnavailable) else last
                if loop.time() >= deadline:
                    what = f"the topic {topic.name!r} could not be prepared within {timeout:g} s"
                    raise BrokerUnavailable(what if last is None else f"{what}: {last}") from error
            else:
                self._prepared.add(topic)
                return
            await backoff.wait(deadline)

    async def declare(self, topic: str, groups: Sequence[str] = (), deadline: float | None = None) -> None:
        """Create what is missing. Raises BrokerUnavailable, ConfigError."""
        await self.patiently(lambda: self.driver.declare(topic, groups), deadline)
        self._declared.setdefault(topic, set()).update(groups)

    def has_declared(self, topic: str, group: str) -> bool:
        """Whether a group was declared here, and not removed here."""
        return group in self._declared.get(topic, ())

    async def refuse_pattern(self, topic: str, deadline: float | None = None) -> None:
        """Raise ConfigError for a name that looks like a pattern, unless the broker has a topic of that very name."""
        if topic in self._declared or not looks_like_pattern(topic):
            return
        if not await self.has_topic(topic, deadline):
            raise ConfigError(
                f"the topic {topic!r} looks like a pattern, which nothing here is, and {self.url.display} has no topic "
                "of that very name"
            )
        self._declared.setdefault(topic, set())

    async def has_topic(self, topic: str, deadline: float | None = None) -> bool:
        """Whether the broker has a topic, as a group that vanishes at once finds out. Raises BrokerUnavailable."""
        look = Subscription(
            topic=topic,
            group=f"looks-{uuid4().hex}",
            ephemeral=True,
            start="latest",
            ordering="none",
            max_in_flight=1,
            create=False,
        )
        try:
            reading = await self.patiently(lambda: collect(self.driver, look), deadline)
        except (ConfigError, UnsupportedError):
            return False
        with contextlib.suppress(ConnectionLost):
            await reading.close()
        return True

    def forget(self, topic: str, group: str | None = None) -> None:
        """The topic, or one group of it, was removed: declare a topic again before the next message, but not the group."""
        if group is None:
            self._declared.pop(topic, None)
        else:
            self._declared.get(topic, set()).discard(group)
        self._listeners.forget(topic)

    async def patiently(
        self, call: Callable[[], Awaitable[ResultT]], deadline: float | None = None, until: float = 0.0
    ) -> ResultT:
        """Call until the broker answers. Raises BrokerUnavailable after `publish_timeout`, or at the deadline.

        What is under way at the deadline may take until `until`, if that is later; but it is not begun again.
        """
        loop, timeout = asyncio.get_running_loop(), self.url.engine.publish_timeout
        if deadline is None:
            deadline = loop.time() + timeout
        backoff = Backoff()
        last: Exception | None = None
        while True:
            limit = asyncio.timeout_at(max(deadline, until))
            try:
                with cancellable():
                    async with limit:
                        result = await call()
            except ConnectionLost as error:
                last = error
            except TimeoutError as error:
                if not limit.expired():
                    raise
                last = last or error
            else:
                self.away = None
                return result
            self.away = last
            if loop.time() >= deadline:
                raise self.unavailable(timeout, last) from (last.__cause__ or last)
            await backoff.wait(deadline)

    async def trouble(self) -> Exception | None:
        """Why the broker is not well; None if it answers."""
        try:
            with cancellable():
                async with asyncio.timeout(PING_TIMEOUT):
                    await self.driver.ping()
        except TimeoutError:
            return ConnectionLost(f"it did not answer within {PING_TIMEOUT:g} s")
        except (ConnectionLost, ThingsKitError) as error:
            return error
        return None

    def unavailable(self, timeout: float, last: Exception | None) -> BrokerUnavailable:
        """The error for a broker that stayed away, with what it said last."""
        why = f": {reason_of(last)}" if isinstance(last, ConnectionLost) else ""
        return BrokerUnavailable(f"{self.url.display} did not answer within {timeout:g} s{why}")

    async def send(
        self,
        messages: Sequence[Message],
        deadline: float,
        *,
        until: float = 0.0,
        insist: bool = False,
        later: Sending | None = None,
    ) -> list[Exception | None]:
        """Send prepared messages; one result each, None where it is confirmed. The broker's errors are results.

        What is sent by `later` comes another time, so nobody is asked now who listens.

        What is under way at the deadline may take until `until`; but it is not sent again.
        What nobody listens to is refused, or dropped where the URL says so. With `insist` it is an outage: it is sent
        until somebody does, or else `BrokerUnavailable` at the deadline.
        """
        drop = self.url.engine.unrouted == "drop"
        ask = later is None and (insist or not drop)
        results = await self._try(messages, deadline, until, ask=ask, sending=later)
        if not any(results):
            return results
        if insist:
            return await self._insist(messages, results, deadline)
        return [None if drop and isinstance(result, NobodyListens) else result for result in results]

    async def answer(
        self, messages: Sequence[Message], deadline: float, *, until: float = 0.0, insist: bool = False
    ) -> list[Exception | None]:
        """The same for what goes to the inboxes of others: they are as they are, and nothing is declared or asked."""
        del insist
        try:
            results = await self.patiently(lambda: self.driver.send(messages), deadline, until)
        except (BrokerUnavailable, PublishError) as error:
            return [error] * len(messages)
        except (ConfigError, UnsupportedError) as error:  # who asks says where, which may be no name at all
            if len(messages) > 1:
                alone = [await self.answer([message], deadline, until=until) for message in messages]
                return [result for (result,) in alone]
            return [NobodyListens(str(error))]
        return [
            NobodyListens(f"there is no topic {message.topic!r}")
            if isinstance(result, UnknownTopic)
            else result
            for message, result in zip(messages, results, strict=True)
        ]

    async def _try(
        self,
        messages: Sequence[Message],
        deadline: float,
        until: float = 0.0,
        *,
        ask: bool,
        sending: Sending | None = None,
    ) -> list[Exception | None]:
        sending = sending or self.driver.send
        topics = {message.topic for message in messages}
        try:
            refused = await self._refused(topics, topics - self._declared.keys(), deadline, ask=ask)
            results = await self._send(messages, refused, sending, deadline, until)
            if not any(results):
                return results
            unknown = [index for index, result in enumerate(results) if isinstance(result, UnknownTopic)]
            if unknown:
                missing = [messages[index] for index in unknown]
                again = await self._send_unknown(missing, sending, deadline, ask=ask)
                for index, result in zip(unknown, again, strict=True):
                    results[index] = result
        except (BrokerUnavailable, PublishError) as error:
            return [error] * len(messages)
        return results

    async def _send(
        self,
        messages: Sequence[Message],
        refused: Mapping[str, Exception],
        sending: Sending,
        deadline: float,
        until: float = 0.0,
    ) -> list[Exception | None]:
        """Send those whose topics are not refused."""
        if not refused:
            return list(await self.patiently(lambda: sending(messages), deadline, until))
        rest = [message for message in messages if message.topic not in refused]
        results = iter(await self._send(rest, {}, sending, deadline, until) if rest else ())
        return [refused.get(message.topic) or next(results) for message in messages]

    async def _send_unknown(
        self, messages: Sequence[Message], sending: Sending, deadline: float, *, ask: bool
    ) -> list[Exception | None]:
        """A topic was removed behind our back, or may not be declared by us.

        Its groups were removed with it, so who listened to it before says nothing of the new one.
        """
        topics = {message.topic for message in messages}
        for topic in topics:
            self._listeners.forget(topic)
        missing: dict[str, Exception] = {
            topic: PublishError(f"{self.url.display} has no topic {topic!r}: declare it first")
            for topic in topics
        }
        refused = await self._refused(topics, topics, deadline, ask=ask) if self._declares else missing
        results = await self._send(messages, refused, sending, deadline)
        return [
            missing[message.topic] if isinstance(result, UnknownTopic) else result
            for message, result in zip(messages, results, strict=True)
        ]

    async def _refused(
        self, topics: Set[str], undeclared: Set[str], deadline: float, *, ask: bool
    ) -> dict[str, Exception]:
        """The errors of those topics that cannot be, or that nobody listens to."""
        refused = await self._declare_all(undeclared, deadline) if self._declares else {}
        if ask and self._has_listeners is not None:
            refused |= await self._unheard(topics - refused.keys(), self._has_listeners, deadline)
        return refused

    async def _insist(
        self, messages: Sequence[Message], results: list[Exception | None], deadline: float
    ) -> list[Exception | None]:
        """Send again what nobody listens to, with all that comes after it in its topic: their order stays."""
        loop, backoff = asyncio.get_running_loop(), Backoff()
        while again := _unrouted(messages, results):
            if loop.time() >= deadline:
                for index in again:
                    results[index] = self._unrouted_too_long(results[index])
                return results
            topics = {messages[index].topic for index in again}
            self._unheard_of.tell(topics)
            await backoff.wait(deadline)
            if self._declares:
                await self._declare_all(topics, deadline)
            repeated = await self._try([messages[index] for index in again], deadline, ask=True)
            for index, result in zip(again, repeated, strict=True):
                results[index] = result
        self._unheard_of.forget({message.topic for message in messages})
        return results

    def _unrouted_too_long(self, last: Exception | None) -> BrokerUnavailable:
        timeout = self.url.engine.publish_timeout
        error = BrokerUnavailable(f"{self.url.display} did not take it within {timeout:g} s: {last}")
        error.__cause__ = last
        return error

    @property
    def _declares(self) -> bool:
        return self.url.engine.declare

    async def _unheard(
        self, topics: Iterable[str], has_listeners: HasListeners, deadline: float
    ) -> dict[str, Exception]:
        """The errors of those topics that nobody listens to."""

        async def look(topic: str) -> Exception | None:
            ask = functools.partial(self._listeners.missing, topic, has_listeners)
            return await self.patiently(ask, deadline)

        return await _errors(topics, look)

    async def _declare_all(self, topics: Iterable[str], deadline: float) -> dict[str, Exception]:
        """Declare topics, with the groups that we have declared before; returns the errors of those that cannot be."""

        async def declare(topic: str) -> None:
            await self.refuse_pattern(topic, deadline)
            await self.declare(topic, tuple(self._declared.get(topic, ())), deadline)

        return await _errors(topics, declare)


async def _errors(
    topics: Iterable[str], look: Callable[[str], Awaitable[Exception | None]]
) -> dict[str, Exception]:
    """What is wrong with topics, by their names."""
    found: dict[str, Exception] = {}
    for topic in topics:
        try:
            error = await look(topic)
        except (ConfigError, PublishError) as refusal:
            error = refusal
        if error is not None:
            found[topic] = error
    return found


def _unrouted(messages: Sequence[Message], results: Sequence[Exception | None]) -> list[int]:
    """By index what nobody listens to, and what comes after it in the same topic."""
    silent: set[str] = set()
    indices: list[int] = []
    for index, (message, result) in enumerate(zip(messages, results, strict=True)):
        if isinstance(result, NobodyListens):
            silent.add(message.topic)
        if message.topic in silent:
            indices.append(index)
    return indices
