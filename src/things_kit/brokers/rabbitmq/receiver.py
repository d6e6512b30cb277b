"""What a queue delivers to one consumer, and what became of it."""

import asyncio
import contextlib
import heapq
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeAlias

from pika.spec import BasicProperties

from things_kit.brokers.rabbitmq.errors import lost
from things_kit.brokers.rabbitmq.link import Channel, get
from things_kit.brokers.rabbitmq.names import notes_queue
from things_kit.brokers.rabbitmq.publisher import Publisher
from things_kit.brokers.rabbitmq.renewal import Renewal
from things_kit.brokers.rabbitmq.returned import Note, Returned, listen, news, told
from things_kit.brokers.rabbitmq.wire import Letter, Unpacker
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.messaging.errors import ConfigError, ThingsKitError
from things_kit.messaging.message import Message

log = logging.getLogger("things_kit.rabbitmq")

MOST: Final = 65_535
"""What AMQP can count of messages that are handed out."""

SHORT: Final = 1.0
"""Seconds that a receiver waits out itself."""

FAREWELL: Final = 1.0
"""Seconds for the queue to have back what a receiver held."""

NOTES: Final = {"x-expires": 7 * 24 * 3_600_000}
"""Arguments of the queue of notes: a week without consumers, and it is gone."""

PutOff: TypeAlias = Callable[[Sequence[tuple[Message, datetime, int]]], Awaitable[Sequence[Exception | None]]]
"""Has copies of messages come to the queue again when they are due, with an attempt."""


class RabbitMQReceiver:
    """A channel with a consumer.

    `put_off` is None where messages that are not due wait here: in an ephemeral group, whose queue dies with it.
    `members` tells how many consumers the queue has.
    """

    def __init__(
        self,
        channel: Channel,
        queue: str,
        subscription: Subscription,
        unpacker: Unpacker,
        put_off: PutOff | None,
        members: Callable[[], Awaitable[int]],
        returned: Returned,
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._subscription = subscription
        self._unpacker = unpacker
        self._put_off = put_off
        self._members = members
        self._returned = returned
        self._noted: set[int] = set()  # tags of which all are told that they go back
        self._counts: dict[int, int] = {}  # by delivery tag: how often it had come back, if ever
        self._arrived: deque[tuple[Any, Any, bytes]] = deque()
        self._ready: deque[Delivery] = deque()
        self._waiting: list[
            tuple[float, int, Delivery]
        ] = []  # heap: when due in the loop's time, delivery tag
        self._out: dict[
            int, Message | None
        ] = {}  # tags that are not settled, in order; None: not unpacked yet
        self._young: dict[
            int, int
        ] = {}  # by the tag that a delivery's token has: that of the copy in its place
        self._publisher: Publisher | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._back: dict[int, int] = {}  # tags of what is to go back, with the attempt that comes next
        self._cancelled: str | None = None
        self._receiving = False
        self._closed = False

    @property
    def held(self) -> int:
        """How many messages the broker has handed to us and waits for."""
        return 0 if self._closed or self._channel.error is not None else len(self._out)

    async def begin(
        self, publisher: Publisher, arguments: Mapping[str, int], renew_within: float | None
    ) -> None:
        """Have the broker send messages to a consumer with these arguments.

        What is held is renewed within so many seconds through the publisher, where the broker cannot be asked to wait.
        """
        channel, raw = self._channel, self._channel.raw
        channel.on_lost(lambda _: self._woken.set())
        raw.add_on_cancel_callback(self._on_cancelled)
        self._publisher = publisher
        await listen(channel, self._queue, partial(self._returned.hear, self._queue))
        await self._read_notes()
        await channel.ask(raw.basic_qos, prefetch_count=min(self._subscription.max_in_flight, MOST))
        await channel.ask(raw.basic_consume, self._queue, self._on_message, arguments=dict(arguments))
        if renew_within is not None:
            renewal = Renewal(channel, publisher, self._queue, renew_within, self._held, self._exchange)
            self._renewing = asyncio.create_task(
                renewal.run(lambda: next(reversed(self._out), 0)), name=f"{self._queue} renewing"
            )

    async def _read_notes(self) -> None:
        """What the last one left, before anything can arrive; the group's others are told it too."""
        if self._put_off is None:
            return
        channel, name = self._channel, notes_queue(self._queue)
        await channel.ask(channel.raw.queue_declare, name, durable=True, arguments=NOTES)
        found = []
        while (body := await get(channel, name)) is not None:
            self._returned.hear(self._queue, body)
            found.append(body)
        self._say_in_background(news(self._queue, found))

    async def _leave_notes(self) -> None:
        left = told(self._returned.of(self._queue))
        properties = BasicProperties(headers={}, delivery_mode=2)
        if self._put_off is not None:
            await self._say([Letter("", notes_queue(self._queue), properties, note) for note in left])

    def _on_message(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        self._out[method.delivery_tag] = None
        self._arrived.append((method, properties, body))
        self._woken.set()

    def _on_cancelled(self, _: Any) -> None:
        self._cancelled = f"the queue {self._queue!r} was removed, or moved to another node"
        self._woken.set()

    def _check(self) -> None:
        if self._channel.error is not None:
            raise lost(self._channel.error)
        if self._cancelled is not None:
            raise ConnectionLost(self._cancelled)

    # --- receiving

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """What has arrived and is due."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        self._receiving = True
        try:
            self._give_back()
            while True:
                self._check()
                if found := self._take(limit, loop.time()):
                    return found
                if loop.time() >= deadline:
                    return ()
                self._woken.clear()
                until = min(deadline, self._waiting[0][0]) if self._waiting else deadline
                try:
                    async with asyncio.timeout_at(until):
                        await self._woken.wait()
                except TimeoutError:
                    pass  # the deadline, or one is due
        finally:
            self._receiving = False

    def _take(self, limit: int, now: float) -> list[Delivery]:
        while self._waiting and self._waiting[0][0] <= now:
            self._ready.append(heapq.heappop(self._waiting)[2])
        taken: list[Delivery] = []
        while self._ready and len(taken) < limit:
            taken.append(self._ready.popleft())
        arrived, unpack, out = self._arrived, self._unpacker.unpack, self._out
        while arrived and len(taken) < limit:
            method, properties, body = arrived.popleft()
            delivery, due = unpack(method, properties, body)
            if method.redelivered:
                delivery = self._redelivered(delivery, properties)
            out[delivery.token[0]] = delivery.message
            if due is None:
                taken.append(delivery)
            else:
                self._not_before(due, delivery, taken, now)
        return taken

    def _redelivered(self, delivery: Delivery, properties: Any) -> Delivery:
        """With the attempt that it is."""
        tag, message = delivery.token
        count = (properties.headers or {}).get("x-delivery-count", 0)
        if not isinstance(count, int) or count <= 0:
            return delivery
        self._counts[tag] = count
        attempt = self._returned.attempt(self._queue, message.id, count, message.attempt)
        message = message.replace(attempt=attempt)
        return Delivery(message, (tag, message))

    def _not_before(self, due: datetime, delivery: Delivery, taken: list[Delivery], now: float) -> None:
        wait = (due - datetime.now(UTC)).total_seconds()
        if wait <= 0:
            taken.append(delivery)
        elif wait <= SHORT or self._put_off is None:
            self._hold(delivery, now + wait)
        else:
            self._in_background(self._postpone([(delivery, due, delivery.message.attempt)]))

    def _hold(self, delivery: Delivery, until: float) -> None:
        heapq.heappush(self._waiting, (until, delivery.token[0], delivery))
        self._woken.set()

    def _in_background(self, work: Any) -> None:
        task = asyncio.create_task(work, name=f"{self._queue} putting off")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    # --- settling

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Acknowledge what is done, put off what is to wait, and give back the rest."""
        self._check()
        self._acknowledge([delivery.token[0] for delivery in acknowledged])
        if not released:
            return
        later, back = [], dict[int, int]()
        for release in released:
            if release.delivery.token[0] not in self._young and self._keeps_its_place(release):
                back[release.delivery.token[0]] = release.attempt
            else:
                due = datetime.now(UTC) + timedelta(seconds=release.delay)
                later.append((release.delivery, due, release.attempt))
        if later:
            await self._postpone(later)
        # Whoever stops releases all that he holds, and then closes. Until then the broker would send it straight back,
        # behind what comes meanwhile; when the channel closes, it goes back at once and in order.
        self._back |= back
        if self._receiving:
            self._give_back()

    def _keeps_its_place(self, release: Release) -> bool:
        """Whether it goes back to where it was: it was never begun, or others of its key are behind it."""
        message: Message = release.delivery.token[1]
        if release.aside:
            return False
        ordering = self._subscription.ordering
        ordered = ordering == "partition" or (ordering == "key" and message.key is not None)
        return ordered or (release.delay <= 0 and release.attempt <= message.attempt)

    async def _postpone(self, later: Sequence[tuple[Delivery, datetime, int]]) -> None:
        """Acknowledge messages only after their copies are confirmed; without them they wait here."""
        results: Sequence[Exception | None] = ()
        if self._put_off is not None:
            try:
                results = await self._put_off([(delivery.token[1], due, n) for delivery, due, n in later])
            except (ConnectionLost, ThingsKitError) as error:
                log.warning("%s: %d messages wait in memory: %s", self._queue, len(later), error)
        if not results:
            results = [ConnectionLost()] * len(later)
        self._acknowledge(
            [
                delivery.token[0]
                for (delivery, _, _), failed in zip(later, results, strict=True)
                if failed is None
            ]
        )
        now = asyncio.get_running_loop().time()
        for (delivery, due, attempt), failed in zip(later, results, strict=True):
            if failed is not None:
                tag, message = delivery.token
                again = message.replace(attempt=attempt)
                wait = (due - datetime.now(UTC)).total_seconds()
                self._hold(Delivery(again, (tag, again)), now + max(0.0, wait))

    def _acknowledge(self, tags: Sequence[int]) -> None:
        if self._young:
            tags = [self._young.pop(tag, tag) for tag in tags]
        self._settle(tags, self._channel.raw.basic_ack)

    def _settle(self, tags: Sequence[int], tell: Callable[[int, bool], None]) -> None:
        """Tell the broker of deliveries: of the oldest, if all of them are meant, at once."""
        if not tags or self._channel.error is not None or not self._channel.raw.is_open:
            return
        meant, out = set(tags), self._out
        for tag in tags if self._counts else ():
            self._counts.pop(tag, None)
        last = 0
        for tag in out:
            if tag not in meant:
                break
            last = tag
        if last:
            prefix = [tag for tag in meant if tag <= last]
            for tag in prefix:
                del out[tag]
            meant.difference_update(prefix)
            tell(last, True)
        for tag in sorted(meant):
            if tag in out:
                del out[tag]
                tell(tag, False)

    def _give_back(self) -> None:
        """Have the broker hand out again what was released: to us as well, as we go on."""
        back, self._back = self._back, {}
        self._say_in_background(self._note(back))
        self._settle(list(back), self._nack)

    def _nack(self, tag: int, multiple: bool) -> None:
        self._channel.raw.basic_nack(tag, multiple, requeue=True)

    def _note(self, back: Mapping[int, int]) -> list[Letter]:
        """Remember the attempts of what goes back; returns what the group's others are to be told."""
        notes: dict[str, Note] = {}
        for tag, attempt in back.items():
            message = self._out.get(tag)
            if message is not None:
                notes[message.id or ""] = self._counts.pop(tag, 0) + 1, attempt
        self._returned.note(self._queue, notes)
        return news(self._queue, told(notes))

    def _say_in_background(self, letters: Sequence[Letter]) -> None:
        if letters:
            self._in_background(self._say(letters))

    async def _say(self, letters: Sequence[Letter]) -> None:
        """Tell others; they can do without."""
        if letters and self._publisher is not None:
            with contextlib.suppress(ConnectionLost, ConfigError):
                await self._publisher.publish(letters)

    def _note_all(self) -> list[Letter]:
        """The same of all that is held, as the channel closes."""
        while self._arrived:
            method, properties, body = self._arrived.popleft()
            delivery = self._unpacker.unpack(method, properties, body).delivery
            self._out[method.delivery_tag] = self._redelivered(delivery, properties).message
        held = {tag: message.attempt for tag, message in self._out.items() if message is not None}
        new = {tag: attempt for tag, attempt in (held | self._back).items() if tag not in self._noted}
        self._noted.update(new)
        return self._note(new)

    # --- what the broker would take back, as it waits no longer

    def _held(self, latest: int) -> list[tuple[int, Message]]:
        """What is held up to a delivery tag. What was not handed out yet goes back, and comes anew in its place."""
        if self._arrived and self._arrived[0][0].delivery_tag <= latest:
            tags = [method.delivery_tag for method, _, _ in self._arrived]
            self._say_in_background(self._note_all())
            self._settle(tags, self._nack)
        return [
            (tag, message)
            for tag, message in self._out.items()
            if tag <= latest and message is not None and tag not in self._back
        ]

    def _exchange(self, old: int, young: int) -> bool:
        """Let a copy take the place of the delivery that it was made of, if that is still held."""
        message = self._out.get(old)
        if message is None or old in self._back:
            return False
        self._out[young] = message
        original = next((first for first, tag in self._young.items() if tag == old), old)
        self._young[original] = young
        self._settle([old], self._channel.raw.basic_ack)
        return True

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """There are no leases: a delivery is bound to the connection."""

    async def close(self) -> None:
        """Close the channel; the broker gives to others what was not settled."""
        if self._closed:
            return
        self._closed = True
        tasks = [*self._leaving, *([] if self._renewing is None else [self._renewing])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._out or self._channel.error is not None:
            await self._channel.close()
            return
        with contextlib.suppress(ConnectionLost, ConfigError, TimeoutError):
            async with asyncio.timeout(FAREWELL):
                before = await self._members()
                while letters := self._note_all():  # what was acknowledged last made room for more
                    await self._say(letters)
                    if before <= 1:
                        await self._leave_notes()
                await self._channel.close()
                # Not with the answer, but a moment later the queue has back what we held. Who consumes before that gets
                # what is behind it first.
                while await self._members() >= before:  # noqa: ASYNC110 - the broker tells nobody
                    await asyncio.sleep(0.005)
        await self._channel.close()
