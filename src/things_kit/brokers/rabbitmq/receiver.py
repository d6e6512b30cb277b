"""What a queue delivers to one consumer after another, and what became of it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, TypeAlias
from weakref import WeakSet

import msgspec
from pika.spec import Basic, Queue

from things_kit.brokers.rabbitmq.amqp.channel import Channel
from things_kit.brokers.rabbitmq.counting import Counts, way_back
from things_kit.brokers.rabbitmq.credit import Consumers
from things_kit.brokers.rabbitmq.errors import ERRORS, NotWaited, lost, missing
from things_kit.brokers.rabbitmq.publisher import Publisher
from things_kit.brokers.rabbitmq.renewal import TAG, Renewal
from things_kit.brokers.rabbitmq.wire import GIVEN_BACK, Place, Token, Unpacker
from things_kit.engine.clock import steady
from things_kit.engine.driver import ConnectionLost, Delivery, Later, Release, Subscription
from things_kit.messaging.errors import ConfigError, ThingsKitError
from things_kit.messaging.message import Message

SendLater: TypeAlias = Callable[[Sequence[Later]], Awaitable[Sequence[Exception | None]]]
"""As `SendsLater.send_later`."""

FAREWELL: Final = 1.1
"""Seconds for the last deliveries to arrive when we leave, and for the queue to have all back."""

RETURN: Final = 5.0
"""Seconds for which whoever consumes next in this process waits for the queue to have all back: a busy broker takes its time."""

RECEIVERS: Final[WeakSet["RabbitMQReceiver"]] = WeakSet()
"""All of this process, for the lag: another `Broker` may have the consumer."""


class Source(msgspec.Struct, frozen=True):
    """The queue that a receiver consumes from.

    Attributes:
        queue: Its name.
        place: What no other queue has, at any broker.
        own: Whether it is ours.
        counts: What it counts of what comes back.
        single_active: Whether one consumer gets all messages, and the others wait.
        arguments: Those of its consumers.
        look: Asks for `message_count` and `consumer_count`; None if there is no such queue.
        not_waited: Told that the queue refuses these arguments.
        returned: How many messages the last receiver of a queue may have held when it left.
    """

    queue: str
    place: Place
    own: bool
    counts: Counts
    single_active: bool
    arguments: Mapping[str, int]
    look: Callable[[str], Awaitable[Any]]
    not_waited: Callable[[str], None]
    returned: dict[str, int]


class RabbitMQReceiver:
    """A channel with a consumer of a queue.

    Args:
        channel: Its own.
        source: What it consumes from.
        subscription: What it is to bring.
        unpacker: Of what comes.
        publisher: Of copies of what is held.
        send_later: As the driver's; None where the queue dies with this receiver.
    """

    def __init__(
        self,
        channel: Channel,
        source: Source,
        subscription: Subscription,
        unpacker: Unpacker,
        publisher: Publisher,
        send_later: SendLater | None,
    ) -> None:
        self.place = source.place
        self._channel = channel
        self._source = source
        self._subscription = subscription
        self._unpack = unpacker.unpack
        self._send_later = send_later
        self._consumers = Consumers(
            channel,
            source.queue,
            source.arguments,
            subscription.max_in_flight,
            before=source.returned.get(source.queue, 0),
            steady=not source.own or (source.single_active and not subscription.ephemeral),
        )
        self._renewal = Renewal(channel, publisher, source.queue, source.arguments)
        self._exchanged: dict[int, asyncio.Event] = {}  # by delivery tag: who waits for a copy
        self._tasks: list[asyncio.Task[None]] = []
        self._consuming: asyncio.Task[None] | None = None
        self._arrived: list[tuple[Any, Any, bytes]] = []  # in this turn of the loop
        self._out: dict[int, Delivery] = {}  # by delivery tag, in order: what is not settled
        self._unwanted: list[Delivery] = []  # by the inbox
        self._last: set[Delivery] = set()  # what goes back as the channel closes
        self._closed = False
        self.returning: asyncio.Task[None] | None = None
        channel.on_delivery, channel.on_cancel = self._on_delivery, self._on_cancel
        channel.on_lost(self._on_lost)
        RECEIVERS.add(self)

    @property
    def held(self) -> int:
        """How many messages the broker has handed to us and waits for."""
        return 0 if self._closed or self._channel.error is not None else len(self._out) + len(self._arrived)

    async def agree(self) -> None:
        """Return when all that was sent over our channel has arrived, on both sides. What is lost agrees to nothing."""
        if not self._closed and self._channel.error is None:
            with contextlib.suppress(Exception):
                await self._channel.ask(Queue.Declare(queue=self._source.queue, passive=True))

    def renew(self, within: float) -> None:
        """Have what is held for long renewed within so many seconds."""
        renewing = self._renewal.run(within, lambda: next(reversed(self._out), 0), self._held_until)
        self._tasks.append(asyncio.create_task(renewing, name=f"{self._source.queue} renewing"))

    # --- what the broker says

    def _on_lost(self, error: Exception) -> None:
        for waits in self._exchanged.values():
            waits.set()
        if not self._closed:
            self._subscription.inbox.fail(lost(error))

    def _on_cancel(self, tag: str) -> None:
        if not self._closed and tag == self._consumers.tag:
            why = f"the queue {self._source.queue!r} was removed, or moved to another node"
            self._subscription.inbox.fail(ConnectionLost(why))

    def _on_delivery(self, method: Any, properties: Any, body: bytes) -> None:
        if method.consumer_tag == TAG:
            self._exchange(int(properties.correlation_id), method.delivery_tag)
            return
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._take_in)
        self._arrived.append((method, properties, body))

    def _take_in(self) -> None:
        """All that one reading of the connection brought goes to the inbox at once."""
        arrived, self._arrived = self._arrived, []
        out, unpack, consumers = self._out, self._unpack, self._consumers
        come = []
        for method, properties, body in arrived:
            delivery = out[method.delivery_tag] = unpack(method, properties, body)
            consumers.arrived(method.delivery_tag)
            come.append(delivery)
        self._refused(self._subscription.inbox.put(come))

    def _refused(self, deliveries: Sequence[Delivery]) -> None:
        """They go back as they came, once there is no consumer of ours to which they would come at once."""
        self._unwanted.extend(deliveries)
        if self._unwanted and self._consumers.ended:
            unwanted, self._unwanted = self._unwanted, []
            self._give_back(map(_as_it_came, unwanted))

    # --- credit

    def credit(self, window: int) -> None:
        """Have a consumer that may hold so many messages, or none."""
        self._consumers.credit(window)
        if self._consuming is None and not self._closed:
            self._consuming = asyncio.create_task(self._consume(), name=f"{self._source.queue} consuming")
            self._tasks.append(self._consuming)

    async def _consume(self) -> None:
        try:
            await self._consumers.run()
        except Exception as error:  # noqa: BLE001 - whatever closed the channel
            meant = ERRORS.translate(error, f"consuming {self._source.queue!r}")
            if isinstance(meant, NotWaited):
                self._source.not_waited(self._source.queue)
            self._subscription.inbox.fail(
                lost(error) if missing(error) or isinstance(meant, NotWaited) else meant
            )

    async def quiesce(self) -> None:
        """Have no consumer any more."""
        self._consumers.finish()
        if self._consuming is not None:
            await asyncio.wait({self._consuming})
        self._refused(())

    async def overdue(self) -> int | None:
        """What is ready for this receiver; of a queue that is not ours nobody knows what its count means."""
        found = await self._source.look(self._source.queue)
        if found is None or not self._source.own:
            return None
        another_may_be_active = self._source.single_active and found.consumer_count > 1
        return None if another_may_be_active else int(found.message_count)

    # --- settling

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Acknowledge what is done, and give back the rest: as a copy, where only that can tell which attempt it is."""
        if not self._consumers.settling.is_set():
            await self._consumers.settling.wait()
        if self._channel.error is not None:
            raise lost(self._channel.error)
        self._settle(acknowledged, Basic.Ack)
        if released:
            copied = await self._copied([release for release in released if self._needs_copy(release)])
            self._settle(copied, Basic.Ack)
            self._give_back([release for release in released if release.delivery not in copied])
            if self._last and not (self._consumers.ended or self._closed):
                raise ConnectionLost("a message that is held as a copy could not be given back as another")

    def _needs_copy(self, release: Release) -> bool:
        """Whether the broker's count would forget an attempt. A place in the order is worth more than that."""
        token: Token = release.delivery.token
        if release.aside or token.renewed:  # in a queue that is nobody else's
            return True
        counted = token.counted + way_back(self._source.counts, failed=True)[1]
        return not self._is_ordered(token.message) and release.attempt > counted

    def _is_ordered(self, message: Message) -> bool:
        ordering = self._subscription.ordering
        return ordering == "partition" or (ordering == "key" and message.key is not None)

    async def _copied(self, releases: Sequence[Release]) -> Sequence[Delivery]:
        """Those of which a copy is confirmed."""
        if not releases or self._send_later is None:
            return ()
        now, group = datetime.fromtimestamp(steady(), UTC), self._subscription.group
        copies = [Later(each.delivery.token.message, group, now, each.attempt) for each in releases]
        with contextlib.suppress(ConnectionLost, ThingsKitError):
            results = await self._send_later(copies)
            return [each.delivery for each, failed in zip(releases, results, strict=True) if failed is None]
        return ()

    def _give_back(self, releases: Iterable[Release]) -> None:
        """At once, but for what is to keep its order where we leave: that goes back together as the channel closes.

        What is refused before goes behind what somebody else begins to consume meanwhile (tried on 3.10).
        """
        now: list[tuple[int, Any, Delivery]] = []
        counts, leaving = self._source.counts, self._consumers.ended or self._closed
        for release in releases:
            token: Token = release.delivery.token
            if token.renewed:
                # Its own queue would hand it to us at once; it leaves that as the channel closes
                self._last.add(release.delivery)
                continue
            how, more = way_back(counts, failed=release.attempt > token.counted)
            if leaving and self._is_ordered(token.message):
                self._last.add(release.delivery)
                more = int(counts != "nothing")
            else:
                now.append((token.tag, how, release.delivery))
            GIVEN_BACK.expect(token.copy, token.counted + more, release.attempt)
        now.sort(key=itemgetter(0))
        for how, run in groupby(now, key=itemgetter(1)):
            self._settle([delivery for _, _, delivery in run], how)

    def _settle(self, deliveries: Sequence[Delivery], how: Any) -> None:
        """Tell the broker of deliveries: of the oldest, if all of them are meant, at once, but for what is rejected."""
        if not deliveries or self._channel.error is not None:
            return
        out = self._out
        meant, last = {delivery.token.tag for delivery in deliveries}, 0
        for tag in out:
            if tag not in meant or how is Basic.Reject:
                break
            last = tag
        told = sorted(tag for tag in meant if tag in out)
        for tag in told:
            token: Token = out.pop(tag).token
            if how is Basic.Ack and (token.counted > 1 or token.message.attempt > 1):
                GIVEN_BACK.forget(token.copy)
            if token.renewed:
                self._consumers.copy_settled()
            else:
                self._consumers.settled(tag)
        if last:
            self._channel.tell(how(last, multiple=True))
        for tag in told:
            if tag > last:
                self._channel.tell(how(tag))

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """There are no leases: a delivery is bound to the connection."""

    # --- copies of what is held

    async def mark(self, delivery: Delivery, suspect: int) -> None:
        """Hold a marked copy in its place, in a queue of our own; without the mark it is given back as another copy."""
        if not suspect:
            return
        doing, tag = f"marking a message of {self._source.queue!r}", delivery.token.tag
        come = self._exchanged[tag] = asyncio.Event()
        try:
            async with asyncio.timeout(RETURN):
                with ERRORS.during(doing):
                    await self._renewal.copy([delivery])
                await come.wait()
                await self.agree()  # else the original might come again, too
            if self._channel.error is not None:
                raise lost(self._channel.error, doing)
        except TimeoutError:
            raise ConnectionLost(f"{doing}: the copy did not come within {RETURN:g} s") from None
        finally:
            del self._exchanged[tag]

    def _held_until(self, latest: int) -> list[Delivery]:
        """What is held up to a delivery tag."""
        return [delivery for tag, delivery in self._out.items() if tag <= latest]

    def _exchange(self, old: int, young: int) -> None:
        """Let a copy take the place of the delivery that it was made of; of one that is settled by now it is settled, too."""
        delivery = self._out.pop(old, None)
        if delivery is None:
            self._channel.tell(Basic.Ack(young))
            return
        token: Token = delivery.token
        if not token.renewed:
            self._consumers.settled(old, stays=True)
        token.tag, token.renewed = young, True
        self._out[young] = delivery
        self._channel.tell(Basic.Ack(old))
        if (waits := self._exchanged.get(old)) is not None:
            waits.set()

    # --- the end

    async def close(self) -> None:
        """Close the channel; the broker gives to others what was not settled."""
        if self._closed:
            return
        ends = asyncio.get_running_loop().time() + FAREWELL
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(ends):
                await self.quiesce()  # what is on its way goes back as well
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._subscription.ephemeral:
            self._source.returned[self._source.queue] = self._consumers.handed
        if self._subscription.ephemeral:
            self._channel.tell(Queue.Delete(queue=self._source.queue, nowait=True))
        elif self._out or not self._consumers.ended:  # else something may be on its way to us
            self._give_back([_as_it_came(each) for each in self._out.values() if each not in self._last])
            self.returning = asyncio.create_task(
                self._close_and_return(), name=f"{self._source.queue} returning"
            )
            await asyncio.wait({self.returning}, timeout=max(0.0, ends - asyncio.get_running_loop().time()))
            return
        await self._channel.close()

    async def _close_and_return(self) -> None:
        """Not with the answer, but a moment later the queue has back what we held.

        Who consumes before that gets what is behind it first.
        """
        if self._channel.error is not None:
            return
        with contextlib.suppress(ConnectionLost, ConfigError, TimeoutError):
            async with asyncio.timeout(RETURN):
                before = await self._members()
                await self._channel.close()
                while 0 < before <= await self._members():  # noqa: ASYNC110 - the broker tells nobody
                    await asyncio.sleep(0.005)
        await self._channel.close()  # where it did not come to that

    async def _members(self) -> int:
        """How many consumers the queue has, with those that are cancelled and hold something."""
        found = await self._source.look(self._source.queue)
        return 0 if found is None else int(found.consumer_count)


def _as_it_came(delivery: Delivery) -> Release:
    return Release(delivery, attempt=delivery.token.message.attempt)
