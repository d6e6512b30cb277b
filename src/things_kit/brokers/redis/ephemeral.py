"""A group of its own, gone with its process: a reader of the stream without a consumer group."""

import asyncio
import contextlib
import heapq
import math
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from things_kit.brokers.redis import scripts
from things_kit.brokers.redis.errors import ERRORS
from things_kit.brokers.redis.keys import topic_keys
from things_kit.brokers.redis.wire import before, position
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.messaging.message import Message

if TYPE_CHECKING:
    from things_kit.brokers.redis.driver import RedisDriver
    from things_kit.brokers.redis.reading import Reading

LOOK: Final = 1.0
"""Seconds between two looks for what is due, and whether the stream is there at all."""


class EphemeralReceiver:
    """Reads on from its last entry, and keeps what is put back in memory: nobody else is to get it."""

    def __init__(
        self, home: "RedisDriver", subscription: Subscription, reading: "Reading", place: bytes
    ) -> None:
        self._home = home
        self._subscription = subscription
        self._reading = reading
        self._place = place
        self._held: dict[bytes, Message] = {}
        self._back: list[tuple[float, int, bytes, Message]] = []
        self._order = count()
        self._block_until = 0.0
        self._look_at = 0.0
        self._lost = False

    async def fetch(self, limit: int, wait: float) -> None:
        """What was put back and is due, else what is new."""
        loop, inbox = asyncio.get_running_loop(), self._subscription.inbox
        ends = loop.time() + wait
        try:
            while True:
                if due := self._due(limit):
                    inbox.put(due)
                    return
                if await self._reading.call(lambda: self._read(limit, ends)) or loop.time() >= ends:
                    return
        except ConnectionLost:
            self._lost = True
            raise

    async def quiesce(self) -> None:
        """Return when no call is at the server."""
        with ERRORS.during(f"receiving from {self._subscription.topic!r}"):
            await self._reading.settle_down()

    async def overdue(self) -> int | None:
        """Whether there is anything behind the last that came."""
        with ERRORS.during("asking what waits"):
            topic, after = self._subscription.topic, b"(" + self._place
            return len(await self._home.client.execute_command("XRANGE", topic, after, "+", "COUNT", 1))

    def _due(self, limit: int) -> list[Delivery]:
        now = asyncio.get_running_loop().time()
        due: list[Delivery] = []
        while self._back and self._back[0][0] <= now and len(due) < limit:
            _, _, entry, message = heapq.heappop(self._back)
            due.append(Delivery(message, entry))
        return due

    async def _read(self, limit: int, ends: float) -> int:
        loop = asyncio.get_running_loop()
        command: list[Any] = ["XREAD", "COUNT", limit]
        topic = self._subscription.topic
        with ERRORS.during(f"receiving from {topic!r}"):
            await self._look(topic)
        due = self._back[0][0] if self._back else math.inf
        until = min(ends, self._look_at, due)
        block = int(1000 * (until - loop.time()))
        if block > 0:
            command += ("BLOCK", block)
            self._block_until = until
        with ERRORS.during(f"receiving from {topic!r}"):
            alarm = due if block > 0 and until == due else None
            answer = await self._reading.command(*command, "STREAMS", topic, self._place, until=alarm)
        self._block_until = 0.0
        if not answer:
            return 0
        [entries] = answer.values()
        self._place = entries[-1][0]
        deliveries = self._home.layout.unpack(topic, entries)
        self._held.update({delivery.token: delivery.message for delivery in deliveries})
        self._subscription.inbox.put(deliveries)
        return len(deliveries)

    async def _look(self, topic: str) -> None:
        """Have what is due added to the stream, if it is time. Raises the client's errors."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._look_at:
            self._look_at = (
                loop.time() + LOOK
            )  # before the call: what is scheduled meanwhile may be due sooner
            self._home.timetable.expect(topic, await scripts.CARRY(self._home.client, topic_keys(topic)))

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Forget what is done; nobody else knew of it."""
        for delivery in acknowledged:
            self._held.pop(delivery.token, None)
        now = asyncio.get_running_loop().time()
        for given in released:
            entry = given.delivery.token
            if entry in self._held:
                message = self._held[entry] = self._held[entry].replace(attempt=given.attempt)
                heapq.heappush(self._back, (now + max(0.0, given.delay), next(self._order), entry, message))
        if self._back and self._back[0][0] < self._block_until:
            # If that fails, the receiver says so itself, or looks again within a second
            with contextlib.suppress(ConnectionLost), ERRORS.during("waking the receiver"):
                await self._reading.wake()

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Nobody else can have them."""

    async def close(self) -> None:
        """Disconnect. After a lost connection the next receiver begins at the first that is not done."""
        await self._reading.close()
        if self._lost:
            self._lost = False
            place = before(min(self._held, key=position)) if self._held else self._place
            self._home.resume[self._subscription.topic, self._subscription.group] = place
