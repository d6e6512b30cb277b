"""What a queue delivers to one consumer after another, and what became of it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from pika.exceptions import AMQPError

from things_kit.brokers.rabbitmq.credit import Consumers
from things_kit.brokers.rabbitmq.errors import NotWaited, lost, missing, translated
from things_kit.brokers.rabbitmq.link import Channel
from things_kit.brokers.rabbitmq.publisher import Publisher
from things_kit.brokers.rabbitmq.renewal import Renewal
from things_kit.brokers.rabbitmq.wire import GIVEN_BACK, Token, Unpacker
from things_kit.engine.clock import steady
from things_kit.engine.driver import ConnectionLost, Delivery, Later, Release, Subscription
from things_kit.messaging.errors import ConfigError, ThingsKitError
from things_kit.messaging.message import Message

SendLater: TypeAlias = Callable[[Sequence[Later]], Awaitable[Sequence[Exception | None]]]
"""As `SendsLater.send_later`."""

FAREWELL: Final = 0.5
"""Seconds for the last deliveries to arrive when we leave."""


class RabbitMQReceiver:
    """A channel with a consumer of a queue.

    Args:
        channel: Its own.
        queue: What it consumes from.
        subscription: What it is to bring.
        unpacker: Of what comes.
        send_later: As the driver's; None where the queue dies with this receiver.
        overdue: How many messages are ready for it; None where that cannot be said.
        members: How many consumers the queue has, with those that are cancelled and hold something.
        arguments: Those of its consumers.
        steady: Whether its credit is always `max_in_flight`.
        not_waited: Told that the queue refuses these arguments.
    """

    def __init__(
        self,
        channel: Channel,
        queue: str,
        subscription: Subscription,
        unpacker: Unpacker,
        *,
        send_later: SendLater | None,
        overdue: Callable[[], Awaitable[int | None]],
        members: Callable[[], Awaitable[int]],
        arguments: Mapping[str, int],
        steady: bool,
        not_waited: Callable[[str], None],
    ) -> None:
        self._overdue = overdue
        self._members = members
        self._channel = channel
        self._queue = queue
        self._subscription = subscription
        self._unpack = unpacker.unpack
        self._send_later = send_later
        self._not_waited = not_waited
        self._consumers = Consumers(
            channel, queue, arguments, subscription.max_in_flight, steady=steady, on_message=self._on_message
        )
        self._consuming: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._arrived: list[tuple[Any, Any, bytes]] = []  # in this turn of the loop
        self._out: dict[int, Delivery] = {}  # by delivery tag, in order: what is not settled
        self._young: dict[int, int] = {}  # by the tag of a delivery's token: that of the copy in its place
        self._unwanted: list[Delivery] = []  # by the inbox
        self._last: set[Delivery] = set()  # what goes back as the channel closes
        self._closed = False
        channel.on_lost(self._on_lost)
        channel.raw.add_on_cancel_callback(self._on_cancelled)

    @property
    def held(self) -> int:
        """How many messages the broker has handed to us and waits for."""
        return 0 if self._closed or self._channel.error is not None else len(self._out) + len(self._arrived)

    async def agree(self) -> None:
        """Return when all that was sent over our channel has arrived, on both sides. What is lost agrees to nothing."""
        if self._closed or self._channel.error is not None:
            return
        with contextlib.suppress(AMQPError, ConnectionLost):
            await self._channel.ask(self._channel.raw.queue_declare, self._queue, passive=True)

    def renew(self, publisher: Publisher, within: float) -> None:
        """Have what is held for long renewed within so many seconds."""
        renewal = Renewal(self._channel, publisher, self._queue, within, self._held_until, self._exchange)
        self._renewing = asyncio.create_task(
            renewal.run(lambda: next(reversed(self._out), 0)), name=f"{self._queue} renewing"
        )

    # --- what the broker says

    def _on_lost(self, error: Exception) -> None:
        if not self._closed:
            self._subscription.inbox.fail(lost(error))

    def _on_cancelled(self, told: Any) -> None:
        if not self._closed and told.method.consumer_tag == self._consumers.tag:
            why = f"the queue {self._queue!r} was removed, or moved to another node"
            self._subscription.inbox.fail(ConnectionLost(why))

    def _on_message(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
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
            self._consuming = asyncio.create_task(self._consume(), name=f"{self._queue} consuming")

    async def _consume(self) -> None:
        try:
            await self._consumers.run()
        except Exception as error:  # noqa: BLE001 - whatever closed the channel
            meant = translated(error)
            if isinstance(meant, NotWaited):
                self._not_waited(self._queue)
            if missing(error) or isinstance(meant, NotWaited):
                meant = lost(error)
            self._subscription.inbox.fail(meant)

    async def quiesce(self) -> None:
        """Have no consumer any more."""
        self._consumers.finish()
        if self._consuming is not None:
            await asyncio.wait({self._consuming})
        self._refused(())

    async def overdue(self) -> int | None:
        """What is ready for this receiver."""
        return await self._overdue()

    # --- settling

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Acknowledge what is done, and give back the rest: as a copy, where only that can tell which attempt it is."""
        if not self._consumers.settling.is_set():
            await self._consumers.settling.wait()
        if self._channel.error is not None:
            raise lost(self._channel.error)
        self._settle(acknowledged, acknowledge=True)
        if released:
            copied = await self._copied([release for release in released if self._needs_copy(release)])
            self._settle(copied, acknowledge=True)
            self._give_back([release for release in released if release.delivery not in copied])

    def _needs_copy(self, release: Release) -> bool:
        """Whether the broker's count would forget an attempt. A place in the order is worth more than that."""
        token: Token = release.delivery.token
        if release.aside or token.tag in self._young:  # in a queue that is nobody else's
            return True
        return not self._is_ordered(token.message) and release.attempt > token.counted + 1

    def _is_ordered(self, message: Message) -> bool:
        ordering = self._subscription.ordering
        return ordering == "partition" or (ordering == "key" and message.key is not None)

    async def _copied(self, releases: Sequence[Release]) -> set[Delivery]:
        """Those of which a copy is confirmed."""
        if not releases or self._send_later is None:
            return set()
        now, group = datetime.fromtimestamp(steady(), UTC), self._subscription.group
        copies = [Later(each.delivery.token.message, group, now, each.attempt) for each in releases]
        with contextlib.suppress(ConnectionLost, ThingsKitError):
            results = await self._send_later(copies)
            return {each.delivery for each, failed in zip(releases, results, strict=True) if failed is None}
        return set()

    def _give_back(self, releases: Iterable[Release]) -> None:
        """At once, but for what is to keep its order where we leave: that goes back together as the channel closes.

        What is refused before goes behind what somebody else begins to consume meanwhile (tried on 3.10).
        """
        now = []
        for release in releases:
            token: Token = release.delivery.token
            GIVEN_BACK.expect(token.copy, token.counted + 1, release.attempt)
            if self._consumers.ended and self._is_ordered(token.message):
                self._last.add(release.delivery)
            else:
                now.append(release.delivery)
        self._settle(now, acknowledge=False)

    def _settle(self, deliveries: Sequence[Delivery] | set[Delivery], *, acknowledge: bool) -> None:
        """Tell the broker of deliveries: of the oldest, if all of them are meant, at once."""
        if not deliveries or self._channel.error is not None or not self._channel.raw.is_open:
            return
        tags = [delivery.token.tag for delivery in deliveries]
        if self._young:
            tags = [self._young.get(tag, tag) for tag in tags]
        meant, last = set(tags), 0
        for tag in self._out:
            if tag not in meant:
                break
            last = tag
        tell: Callable[[int, bool], None] = self._channel.raw.basic_ack if acknowledge else self._nack
        told = sorted(tag for tag in meant if tag in self._out)
        for tag in told:
            self._gone(tag, acknowledged=acknowledge)
        if last:
            tell(last, True)
        for tag in told:
            if tag > last:
                tell(tag, False)

    def _gone(self, tag: int, *, acknowledged: bool) -> None:
        token: Token = self._out.pop(tag).token
        if acknowledged and token.counted > 1:
            GIVEN_BACK.forget(token.copy)
        copy = token.tag != tag
        if copy:
            del self._young[token.tag]
        self._consumers.settled(tag, copy=copy)

    def _nack(self, tag: int, multiple: bool) -> None:
        self._channel.raw.basic_nack(tag, multiple, requeue=True)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """There are no leases: a delivery is bound to the connection."""

    # --- what the broker would take back, as it waits no longer

    def _held_until(self, latest: int) -> list[tuple[int, Delivery]]:
        """What is held up to a delivery tag."""
        return [(tag, delivery) for tag, delivery in self._out.items() if tag <= latest]

    def _exchange(self, old: int, young: int) -> bool:
        """Let a copy take the place of the delivery that it was made of, if that is still held."""
        delivery = self._out.pop(old, None)
        if delivery is None:
            return False
        self._young[delivery.token.tag] = young
        self._out[young] = delivery
        self._consumers.exchanged(old, copy=old != delivery.token.tag)
        self._channel.raw.basic_ack(old)
        return True

    # --- the end

    async def close(self) -> None:
        """Close the channel; the broker gives to others what was not settled."""
        if self._closed:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await self.quiesce()  # what is on its way goes back as well
        self._closed = True
        tasks = [task for task in (self._consuming, self._renewing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._subscription.ephemeral:
            self._channel.drop_queue(self._queue)
        elif self._out:
            self._give_back([_as_it_came(each) for each in self._out.values() if each not in self._last])
            await self._close_and_return()
        await self._channel.close()

    async def _close_and_return(self) -> None:
        """Not with the answer, but a moment later the queue has back what we held.

        Who consumes before that gets what is behind it first.
        """
        if self._channel.error is not None or not self._consumers.ended:
            return
        with contextlib.suppress(ConnectionLost, ConfigError, TimeoutError):
            async with asyncio.timeout(FAREWELL):
                before = await self._members()
                await self._channel.close()
                while await self._members() >= before:  # noqa: ASYNC110 - the broker tells nobody
                    await asyncio.sleep(0.005)


def _as_it_came(delivery: Delivery) -> Release:
    return Release(delivery, attempt=delivery.token.message.attempt)
