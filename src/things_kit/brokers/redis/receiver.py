"""A member of a group: a consumer of the stream's consumer group."""

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from redis.exceptions import ResponseError

from things_kit.brokers.redis import scripts
from things_kit.brokers.redis.errors import ERRORS, says
from things_kit.brokers.redis.keys import consumer_name, group_keys
from things_kit.brokers.redis.wire import Layout, position
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription

if TYPE_CHECKING:
    from things_kit.brokers.redis.reading import Reading

log = logging.getLogger("things_kit.redis")

LOOK: Final = 1.0
"""Seconds between two looks for what others have put back or left lying. What is put back here is seen when it is due."""

FAREWELL: Final = 2.0
"""Seconds that a server may take to let a receiver go. Otherwise the next one of its group, or the lease, frees its messages."""

HASTE: Final = 0.5
"""The same where it has just failed to answer in its time: a stop must not wait for it once more."""

PAGE: Final = 1000
"""Entries that one script is asked to put back: a server does nothing else meanwhile."""


class Home(Protocol):
    """What a receiver needs of its driver."""

    client: Any
    layout: Layout

    def left(self, subscription: Subscription, consumer: str) -> None:
        """This consumer could not put back what it had: the next of its group is to do it."""

    def gone(self, subscription: Subscription, place: bytes, held: Sequence[bytes]) -> None:
        """The group is gone. It is to begin again after this place, and to get these again."""

    async def tidy(self, topic: str) -> None:
        """Trim the stream, if it is time."""


class RedisReceiver:
    """One consumer of a group. A delivery's token is the entry's ID."""

    def __init__(
        self, home: Home, subscription: Subscription, reading: "Reading", place: bytes, lease: float
    ) -> None:
        topic, group = subscription.topic, subscription.group
        self._home = home
        self._subscription = subscription
        self._reading = reading
        self._place = place
        self._lease = round(lease * 1000)
        self._look_every = min(LOOK, lease / 3)
        self._consumer = consumer_name()
        self._keys = group_keys(topic, group)
        self._held: dict[bytes, None] = {}
        self._marked: set[bytes] = set()
        self._leaving: set[bytes] = set()  # being put back: by now it may be there, or still with us
        self._cursor: bytes = b"0-0"
        self._look_at = 0.0
        self._block_until = 0.0
        self._failed = False
        self._closed = False

    async def fetch(self, limit: int, wait: float) -> None:
        """What was put back and is due, else what others left lying, else what is new."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + wait
        while not await self._reading.call(lambda: self._bring(limit, ends)) and loop.time() < ends:
            pass

    async def _bring(self, limit: int, ends: float) -> int:
        deliveries = await self._taken(limit, ends)
        refused = self._subscription.inbox.put(deliveries)
        if refused:
            await self.settle([], [Release(each, attempt=each.message.attempt) for each in refused])
        return len(deliveries)

    async def quiesce(self) -> None:
        """Return when no call is at the server; what it brought is in the inbox."""
        with ERRORS.during(f"receiving from {self._subscription.topic!r}"):
            await self._reading.settle_down()

    async def _taken(self, limit: int, ends: float) -> Sequence[Delivery]:
        doing = f"receiving from {self._subscription.topic!r}"
        try:
            with ERRORS.during(doing, through=(ResponseError,)):
                return await self._look(limit) or await self._read(limit, ends)
        except ResponseError as error:
            if says(error, "NOGROUP") or says(error, "UNBLOCKED") or says(error, "no such key"):
                raise self._gone() from error
            raise ERRORS.translate(error, doing) from error
        except ConnectionLost:
            self._failed = True
            raise

    async def _look(self, limit: int) -> Sequence[Delivery]:
        """For what is not new, if it is time."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._look_at:
            return []
        topic, group = self._subscription.topic, self._subscription.group
        await self._home.tidy(topic)  # here, as nothing waits for it
        self._look_at = (
            loop.time() + self._look_every
        )  # before the call: what is put back meanwhile may be due sooner
        taken, self._cursor, due = await scripts.TAKE(
            self._home.client, self._keys, group, self._consumer, self._lease, limit, self._cursor
        )
        if taken or self._cursor != b"0-0":
            self._look_at = loop.time()
        elif due >= 0:
            self._look_at = min(self._look_at, loop.time() + due / 1000)
        # What we hold ourselves was late to be renewed, as this process stood still: now it is. What had been put back is
        # new, though the answer that says so may still be on its way
        new = [
            entry for entry in taken if entry[3] or not (entry[0] in self._held or entry[0] in self._leaving)
        ]
        new.sort(key=lambda entry: position(entry[0]))
        attempts = {entry[0]: entry[2] for entry in new}
        marks = {entry[0]: entry[4] for entry in new if entry[4]}
        deliveries = self._unpacked([(entry[0], entry[1]) for entry in new])
        for delivery in deliveries:
            attempt = attempts[delivery.token]
            if attempt > 1:
                delivery.message = delivery.message.replace(attempt=attempt)
            delivery.suspect = marks.get(delivery.token, 0)
        self._marked.update(marks)
        return deliveries

    async def _read(self, limit: int, ends: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        command: list[Any] = [
            "XREADGROUP",
            "GROUP",
            self._subscription.group,
            self._consumer,
            "COUNT",
            limit,
        ]
        block = int(1000 * (min(ends, self._look_at) - loop.time()))
        if block > 0:  # 0 would be for ever
            command += ("BLOCK", block)
            self._block_until = loop.time() + block / 1000
        answer = await self._reading.command(*command, "STREAMS", self._subscription.topic, ">")
        self._block_until = 0.0
        if not answer:
            return []
        [entries] = answer.values()
        self._place = entries[-1][0]
        return self._unpacked(entries)

    def _unpacked(self, entries: Sequence[Any]) -> list[Delivery]:
        deliveries = self._home.layout.unpack(self._subscription.topic, entries)
        self._held.update(dict.fromkeys([delivery.token for delivery in deliveries]))
        return deliveries

    def _gone(self) -> ConnectionLost:
        topic, group = self._subscription.topic, self._subscription.group
        log.warning(
            "the group %r of %r is gone from Redis: it begins again after %s, where the stream still is",
            group, topic, self._place.decode(),
        )  # fmt: skip
        self._home.gone(self._subscription, self._place, [*self._held, *self._leaving])
        return ConnectionLost(f"the group {group!r} of {topic!r} is gone from Redis")

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Acknowledge all in one command, and put back the rest by a script."""
        topic = self._subscription.topic
        try:
            with ERRORS.during(f"settling messages of {topic!r}"):
                if acknowledged:
                    await self._acknowledge([delivery.token for delivery in acknowledged])
                if released:
                    await self._put_back(released)
        except ConnectionLost:
            self._failed = True
            raise

    async def _acknowledge(self, entries: Sequence[bytes]) -> None:
        topic, group = self._subscription.topic, self._subscription.group
        if marked := self._marked.intersection(entries):
            await self._home.client.execute_command("HDEL", self._keys[2], *marked)
            self._marked -= marked
        await self._home.client.execute_command("XACK", topic, group, *entries)
        for entry in entries:
            self._held.pop(entry, None)

    async def _put_back(self, released: Sequence[Release]) -> None:
        group = self._subscription.group
        for start in range(0, len(released), PAGE):
            rows = [
                (given.delivery.token, max(0, round(given.delay * 1000)), given.attempt)
                for given in released[start : start + PAGE]
            ]
            entries = {entry for entry, _, _ in rows}
            for entry in entries:
                self._held.pop(entry, None)
            self._leaving |= entries
            words = (word for row in rows for word in row)
            await scripts.RELEASE(self._home.client, self._keys, group, self._consumer, *words)
            self._leaving -= entries
            self._marked -= entries
        soonest = asyncio.get_running_loop().time() + max(0.0, min(given.delay for given in released))
        self._look_at = min(self._look_at, soonest)
        if soonest < self._block_until:
            await self._reading.wake()

    async def mark(self, delivery: Delivery, suspect: int) -> None:
        """Note it beside the stream; it is gone with the entry's next outcome."""
        entry: bytes = delivery.token
        with ERRORS.during("marking a suspect"):
            await scripts.MARK(
                self._home.client, self._keys, self._subscription.group, self._consumer, entry, suspect
            )
        if suspect:
            self._marked.add(entry)
        else:
            self._marked.discard(entry)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Renew the lease of all that this consumer has; what was taken from it stays with whom has it."""
        with ERRORS.during("extending leases"):
            await scripts.EXTEND(self._home.client, self._keys, self._subscription.group, self._consumer)

    async def overdue(self) -> int | None:
        """What nobody was given, and what is due of what was put back."""
        with ERRORS.during("asking what waits"):
            waiting = await scripts.OVERDUE(self._home.client, self._keys, self._subscription.group)
        return None if waiting < 0 else int(waiting)

    async def close(self) -> None:
        """Put back all that is not settled, and delete the consumer."""
        if self._closed:
            return
        self._closed = True
        try:
            with ERRORS.during(f"leaving {self._subscription.topic!r}"):
                async with asyncio.timeout(HASTE if self._failed else FAREWELL):
                    await self._reading.settle_down()
                    await leave(self._home.client, self._subscription, self._consumer)
        except BaseException:
            self._home.left(self._subscription, self._consumer)
            raise
        finally:
            await self._reading.close()


async def leave(client: Any, subscription: Subscription, consumer: str) -> None:
    """Have a consumer's messages put back; a group that is gone has none. Raises the client's errors."""
    keys = group_keys(subscription.topic, subscription.group)
    try:
        await scripts.LEAVE(client, keys, subscription.group, consumer)
    except ResponseError as error:
        if not (says(error, "NOGROUP") or says(error, "no such key") or says(error, "key to exist")):
            raise
