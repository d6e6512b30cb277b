"""A member of a group: a consumer of the stream's consumer group."""

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from things_kit.brokers.redis import scripts
from things_kit.brokers.redis.errors import ERRORS, says
from things_kit.brokers.redis.keys import consumer_name, group_keys
from things_kit.brokers.redis.wire import position
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription

if TYPE_CHECKING:
    from things_kit.brokers.redis.driver import RedisDriver
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


class RedisReceiver:
    """One consumer of a group. A delivery's token is the entry's ID."""

    def __init__(
        self, home: "RedisDriver", subscription: Subscription, reading: "Reading", place: bytes, lease: float
    ) -> None:
        self._home = home
        self._subscription = subscription
        self._topic, self._group = subscription.topic, subscription.group
        self._reading = reading
        self._place = place
        self._lease = round(lease * 1000)
        self._look_every = min(LOOK, lease / 3)
        self._consumer = consumer_name()
        self._keys = group_keys(self._topic, self._group)
        self._held: dict[bytes, None] = {}
        self._marked: set[bytes] = set()
        self._leaving: set[bytes] = set()  # being put back: by now it may be there, or still with us
        self._cursor: bytes = b"0-0"
        self._look_at = 0.0
        self._due_at = math.inf  # what was put back, as far as we know
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
        with ERRORS.during(f"receiving from {self._topic!r}"):
            await self._reading.settle_down()

    async def _taken(self, limit: int, ends: float) -> Sequence[Delivery]:
        try:
            with self._during(f"receiving from {self._topic!r}"):
                return await self._look(limit) or await self._read(limit, ends)
        except ConnectionLost:
            self._failed = True
            raise

    @contextlib.contextmanager
    def _during(self, doing: str) -> Iterator[None]:
        """As the table says, but for what Redis says of a stream or a group that somebody has deleted."""
        try:
            with ERRORS.during(doing, through=(ResponseError,)):
                yield
        except ResponseError as error:
            if says(error, "NOGROUP") or says(error, "UNBLOCKED") or says(error, "no such key"):
                raise self._gone() from error
            raise ERRORS.translate(error, doing) from error

    async def _look(self, limit: int) -> Sequence[Delivery]:
        """For what is not new, if it is time."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._look_at:
            return []
        await self._home.admin.tidy(self._topic)  # here, as nothing waits for it
        # Before the call: what is put back meanwhile may be due sooner
        self._look_at = loop.time() + self._look_every
        self._due_at = math.inf
        taken, self._cursor, due, scheduled = await self._run(scripts.TAKE, self._lease, limit, self._cursor)
        self._home.timetable.expect(self._topic, scheduled)
        if taken or self._cursor != b"0-0":
            self._look_at = loop.time()
        elif due >= 0:
            self._see_at(loop.time() + due / 1000)
        # What we hold ourselves was late to be renewed, as this process stood still: now it is. What had been put back is
        # new, though the answer that says so may still be on its way
        ours = self._held.keys() | self._leaving
        new = {entry: rest for entry, *rest in taken if rest[2] or entry not in ours}
        deliveries = self._unpacked([(entry, new[entry][0]) for entry in sorted(new, key=position)])
        for delivery in deliveries:
            _, attempt, _, delivery.suspect = new[delivery.token]
            if attempt > 1:
                delivery.message = delivery.message.replace(attempt=attempt)
            if delivery.suspect:
                self._marked.add(delivery.token)
        return deliveries

    async def _read(self, limit: int, ends: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        command: list[Any] = ["XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", limit]
        until = min(ends, self._look_at)
        block = int(1000 * (until - loop.time()))
        if block > 0:  # 0 would be for ever
            command += ("BLOCK", block)
            self._block_until = loop.time() + block / 1000
        alarm = until if block > 0 and until >= self._due_at else None
        answer = await self._reading.command(*command, "STREAMS", self._topic, ">", until=alarm)
        self._block_until = 0.0
        if not answer:
            return []
        [entries] = answer.values()
        self._place = entries[-1][0]
        return self._unpacked(entries)

    def _see_at(self, due: float) -> None:
        """Something that was put back is due then, by the loop's time."""
        self._due_at = min(self._due_at, due)
        self._look_at = min(self._look_at, due)

    def _unpacked(self, entries: Sequence[Any]) -> list[Delivery]:
        deliveries = self._home.layout.unpack(self._topic, entries)
        self._held.update(dict.fromkeys([delivery.token for delivery in deliveries]))
        return deliveries

    def _gone(self) -> ConnectionLost:
        gone = f"the group {self._group!r} of {self._topic!r} is gone from Redis"
        log.warning("%s: it begins again after %s, where the stream still is", gone, self._place.decode())
        self._home.gone[self._topic, self._group] = self._place, [*self._held, *self._leaving]
        return ConnectionLost(gone)

    async def _run(self, script: scripts.Script, *arguments: Any) -> Any:
        """Run a script for this consumer. Raises the client's errors."""
        return await script(self._home.client, self._keys, self._group, self._consumer, *arguments)

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Acknowledge all in one command, and put back the rest by a script."""
        try:
            with self._during(f"settling messages of {self._topic!r}"):
                if acknowledged:
                    await self._acknowledge([delivery.token for delivery in acknowledged])
                if released:
                    await self._put_back(released)
        except ConnectionLost:
            self._failed = True
            raise

    async def _acknowledge(self, entries: Sequence[bytes]) -> None:
        if marked := self._marked.intersection(entries):
            await self._home.client.execute_command("HDEL", self._keys[2], *marked)
            self._marked -= marked
        await self._home.command("XACK", self._topic, self._group, *entries)
        for entry in entries:
            self._held.pop(entry, None)

    async def _put_back(self, released: Sequence[Release]) -> None:
        for start in range(0, len(released), PAGE):
            rows = [
                (given.delivery.token, max(0, round(given.delay * 1000)), given.attempt)
                for given in released[start : start + PAGE]
            ]
            entries = {entry for entry, _, _ in rows}
            for entry in entries:
                self._held.pop(entry, None)
            self._leaving |= entries
            await self._run(scripts.RELEASE, *(word for row in rows for word in row))
            self._leaving -= entries
            self._marked -= entries
        soonest = asyncio.get_running_loop().time() + max(0.0, min(given.delay for given in released))
        self._see_at(soonest)
        if soonest < self._block_until:
            await self._reading.wake()

    async def mark(self, delivery: Delivery, suspect: int) -> None:
        """Note it beside the stream; it is gone with the entry's next outcome."""
        with self._during("marking a suspect"):
            await self._run(scripts.MARK, delivery.token, suspect)
        (self._marked.add if suspect else self._marked.discard)(delivery.token)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Renew the lease of all that this consumer has; what was taken from it stays with whom has it."""
        with self._during("extending leases"):
            await self._run(scripts.EXTEND)

    async def overdue(self) -> int | None:
        """What nobody was given, and what is due of what was put back."""
        with ERRORS.during("asking what waits"):
            waiting = await self._run(scripts.OVERDUE)
        return None if waiting < 0 else int(waiting)

    async def close(self) -> None:
        """Put back all that is not settled, and delete the consumer."""
        if self._closed:
            return
        self._closed = True
        try:
            with ERRORS.during(f"leaving {self._topic!r}"):
                async with asyncio.timeout(HASTE if self._failed else FAREWELL):
                    await self._reading.settle_down()
                    await leave(self._home.client, self._keys, self._group, self._consumer)
        except BaseException:  # the next of the group is to do it
            self._home.left.setdefault((self._topic, self._group), set()).add(self._consumer)
            raise
        finally:
            await self._reading.close()


async def leave(client: Any, keys: tuple[str, ...], group: str, consumer: str) -> None:
    """Have a consumer's messages put back; a group that is gone has none. Raises the client's errors."""
    try:
        await scripts.LEAVE(client, keys, group, consumer)
    except ResponseError as error:
        if not (says(error, "NOGROUP") or says(error, "no such key") or says(error, "key to exist")):
            raise
