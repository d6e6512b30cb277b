"""Sending through a driver: declares what is missing, waits out an outage, and ends in time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

from things_kit.engine.backoff import Backoff
from things_kit.engine.cancelling import cancellable
from things_kit.engine.driver import ConnectionLost, Driver, UnknownTopic
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import BrokerUnavailable, ConfigError, PublishError, ThingsKitError
from things_kit.messaging.instrument import Instrument
from things_kit.messaging.message import Message

log = logging.getLogger("things_kit.broker")

PING_TIMEOUT: Final = 5.0
"""Seconds after which a broker that does not answer is reported as not well."""

ResultT = TypeVar("ResultT")


class Transmission:
    """A driver's calls as a broker's users see them: `BrokerUnavailable` in time instead of `ConnectionLost`."""

    def __init__(self, driver: Driver, url: BrokerURL) -> None:
        self.driver = driver
        self.url = url
        self.away: Exception | None = None
        self.instruments: tuple[Instrument, ...] = ()
        self._declared: set[str] = set()

    async def declare(self, topic: str, groups: Sequence[str] = (), deadline: float | None = None) -> None:
        """Create what is missing. Raises BrokerUnavailable, ConfigError."""
        await self.patiently(lambda: self.driver.declare(topic, groups), deadline)
        self._declared.add(topic)

    def forget(self, topic: str) -> None:
        """The topic was removed: declare it again before the next message."""
        self._declared.discard(topic)

    async def patiently(
        self, call: Callable[[], Awaitable[ResultT]], deadline: float | None = None
    ) -> ResultT:
        """Call until the broker answers. Raises BrokerUnavailable after `publish_timeout`, or at the deadline."""
        loop, timeout = asyncio.get_running_loop(), self.url.engine.publish_timeout
        if deadline is None:
            deadline = loop.time() + timeout
        backoff = Backoff()
        last: Exception | None = None
        while True:
            limit = asyncio.timeout_at(deadline)
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
        why = f": {last}" if isinstance(last, ConnectionLost) else ""
        return BrokerUnavailable(f"{self.url.display} did not answer within {timeout:g} s{why}")

    async def send(self, messages: Sequence[Message], deadline: float) -> list[Exception | None]:
        """Send prepared messages; one result each, None where it is confirmed. The broker's errors are results."""
        undeclared = (
            {message.topic for message in messages} - self._declared if self.url.engine.declare else set()
        )
        try:
            refused = await self._declare_all(undeclared, deadline)
            if refused:
                rest = [message for message in messages if message.topic not in refused]
                results = iter(await self._send(rest, deadline))
                return [refused.get(message.topic) or next(results) for message in messages]
            return await self._send(messages, deadline)
        except (BrokerUnavailable, PublishError) as error:
            return [error] * len(messages)

    async def _declare_all(self, topics: Iterable[str], deadline: float) -> dict[str, Exception]:
        """Declare topics; returns the errors of those that the broker cannot have."""
        refused: dict[str, Exception] = {}
        for topic in topics:
            try:
                await self.declare(topic, deadline=deadline)
            except (ConfigError, PublishError) as error:
                refused[topic] = error
        return refused

    async def _send(self, messages: Sequence[Message], deadline: float) -> list[Exception | None]:
        results = list(await self.patiently(lambda: self.driver.send(messages), deadline))
        unknown = [index for index, result in enumerate(results) if isinstance(result, UnknownTopic)]
        if unknown:
            again = [messages[index] for index in unknown]
            for index, result in zip(unknown, await self._send_unknown(again, deadline), strict=True):
                results[index] = result
        return results

    async def _send_unknown(self, messages: Sequence[Message], deadline: float) -> Sequence[Exception | None]:
        """A topic was removed behind our back, or may not be declared by us."""
        results: Sequence[Exception | None] = [UnknownTopic()] * len(messages)
        refused: dict[str, Exception] = {}
        if self.url.engine.declare:
            refused = await self._declare_all({message.topic for message in messages}, deadline)
            results = await self.patiently(lambda: self.driver.send(messages), deadline)
        return [
            refused.get(message.topic)
            or PublishError(f"{self.url.display} has no topic {message.topic!r}: declare it first")
            if isinstance(result, UnknownTopic)
            else result
            for message, result in zip(messages, results, strict=True)
        ]
