"""Sending through a driver: declares what is missing, waits out an outage, and ends in time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from things_kit.engine.backoff import Backoff
from things_kit.engine.driver import ConnectionLost, Driver, UnknownTopic
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import BrokerUnavailable, ConfigError, PublishError
from things_kit.messaging.message import Message

log = logging.getLogger("things_kit.broker")

ResultT = TypeVar("ResultT")


class Transmission:
    """A driver's calls as a broker's users see them: `BrokerUnavailable` in time instead of `ConnectionLost`."""

    def __init__(self, driver: Driver, url: BrokerURL) -> None:
        self.driver = driver
        self.url = url
        self.away: Exception | None = None
        self._declared: set[str] = set()

    async def declare(self, topic: str, groups: Sequence[str] = ()) -> None:
        """Create what is missing. Raises BrokerUnavailable, ConfigError."""
        await self.patiently(lambda: self.driver.declare(topic, groups))
        self._declared.add(topic)

    def forget(self, topic: str) -> None:
        """The topic was removed: declare it again before the next message."""
        self._declared.discard(topic)

    async def patiently(self, call: Callable[[], Awaitable[ResultT]], deadline: float | None = None) -> ResultT:
        """Call until the broker answers. Raises BrokerUnavailable after `publish_timeout`, or at the deadline."""
        loop, timeout = asyncio.get_running_loop(), self.url.engine.publish_timeout
        if deadline is None:
            deadline = loop.time() + timeout
        backoff, last = Backoff(), None
        while True:
            limit = asyncio.timeout_at(deadline)
            try:
                async with limit:
                    result = await call()
            except ConnectionLost as error:
                self.away = last = error
            except TimeoutError as error:
                if not limit.expired():
                    raise
                self.away = last = last or error
            else:
                self.away = None
                return result
            if loop.time() >= deadline:
                why = f": {last}" if isinstance(last, ConnectionLost) else ""
                raise BrokerUnavailable(f"{self.url.display} did not answer within {timeout:g} s{why}") from (
                    last.__cause__ or last
                )
            await backoff.wait(deadline)

    async def send(self, messages: Sequence[Message], deadline: float) -> list[Exception | None]:
        """Send prepared messages; one result each, None where it is confirmed. Raises nothing for the broker's sake."""
        try:
            if self.url.engine.declare:
                for topic in {message.topic for message in messages} - self._declared:
                    await self.declare(topic)
            results = list(await self.patiently(lambda: self.driver.send(messages), deadline))
            unknown = [index for index, result in enumerate(results) if isinstance(result, UnknownTopic)]
            if unknown:
                for index, result in zip(unknown, await self._send_unknown(messages, unknown, deadline), strict=True):
                    results[index] = result
        except (BrokerUnavailable, ConfigError, PublishError) as error:
            return [error] * len(messages)
        return results

    async def _send_unknown(
        self, messages: Sequence[Message], unknown: Sequence[int], deadline: float
    ) -> Sequence[Exception | None]:
        """A topic was removed behind our back, or may not be declared by us."""
        again = [messages[index] for index in unknown]
        results: Sequence[Exception | None] = [UnknownTopic()] * len(again)
        if self.url.engine.declare:
            for topic in {message.topic for message in again}:
                await self.declare(topic)
            results = await self.patiently(lambda: self.driver.send(again), deadline)
        return [
            PublishError(f"{self.url.display} has no topic {message.topic!r}: declare it first")
            if isinstance(result, UnknownTopic)
            else result
            for message, result in zip(again, results, strict=True)
        ]
