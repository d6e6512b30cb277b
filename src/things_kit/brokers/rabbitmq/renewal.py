"""Keeping what is held for longer than the broker waits for an acknowledgement (its setting `consumer_timeout`).

RabbitMQ closes the channel of a consumer that holds a delivery for too long, and hands all that it held to others. Where it
cannot be asked for more time (see `patience`), a delivery that gets old is exchanged for a young one: a copy goes to a queue
that only this receiver consumes, the original is acknowledged once the copy is here, and whatever becomes of the original
becomes of the copy. If the receiver dies, the copy is ready in its queue again, where nobody takes it, and after a second
it expires into the group's queue.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias
from uuid import uuid4

from things_kit.brokers.rabbitmq.link import Channel
from things_kit.brokers.rabbitmq.publisher import Publisher
from things_kit.brokers.rabbitmq.wire import Packer
from things_kit.engine.clock import steady
from things_kit.engine.driver import ConnectionLost, Delivery
from things_kit.messaging.errors import ThingsKitError

log = logging.getLogger("things_kit.rabbitmq")

STEPS: Final = 6
"""Looks in the time that the broker waits."""

OLD: Final = 4
"""After so many looks a delivery is old: two thirds of the time, and two more looks to exchange it in."""

GONE: Final = 3_600_000
"""Milliseconds after which the broker removes a queue whose receiver is gone; what was in it has left it long before."""

Held: TypeAlias = Callable[[int], Sequence[tuple[int, Delivery]]]
"""What is held up to a delivery tag: tags and deliveries."""


class Renewal:
    """Exchanges a receiver's old deliveries for young ones, over the same channel.

    `held` tells what the receiver still holds, `exchange` that the delivery of the first tag is the one of the second tag
    from now on; it returns whether the first was still held.
    """

    def __init__(
        self,
        channel: Channel,
        publisher: Publisher,
        queue: str,
        timeout: float,
        held: Held,
        exchange: Callable[[int, int], bool],
    ) -> None:
        self._channel = channel
        self._publisher = publisher
        self._queue = queue
        self._own = f".things-kit.held-{uuid4().hex}.{queue}"[:250]
        self._timeout = timeout
        self._held = held
        self._exchange = exchange
        self._consuming = False

    async def run(self, latest: Callable[[], int]) -> None:
        """Look after the deliveries until cancelled; `latest` is the tag of the newest one."""
        marks: list[int] = []
        while self._channel.error is None:
            await asyncio.sleep(self._timeout / STEPS)
            marks.append(latest())
            if len(marks) < OLD:
                continue
            try:
                await self._renew(self._held(marks.pop(0)))
            except (ConnectionLost, ThingsKitError) as error:
                log.warning("%s: what is held could not be renewed: %s", self._queue, error)
            except Exception as error:  # noqa: BLE001 - whatever closed the channel
                if self._channel.error is None:  # else the receiver says so
                    log.warning("%s: what is held could not be renewed: %r", self._queue, error)

    async def _renew(self, old: Sequence[tuple[int, Delivery]]) -> None:
        if not old:
            return
        if not self._consuming:
            await self._consume()
        packer, now = Packer(), steady()
        letters = []
        for tag, delivery in old:
            message = delivery.token.message
            letter = packer.again(message, self._own, now, message.attempt, delivery.suspect)
            letter.properties.correlation_id = str(tag)
            letters.append(letter)
        for result in await self._publisher.publish(letters):
            if result is not None:
                raise ConnectionLost(str(result)) from result

    async def _consume(self) -> None:
        raw = self._channel.raw
        arguments = {
            "x-queue-type": "quorum",
            "x-expires": GONE,
            "x-message-ttl": 1000,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self._queue,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        await self._channel.ask(raw.queue_declare, self._own, durable=True, arguments=arguments)
        await self._channel.consume(self._own, self._on_copy, 0, "renewed", {})
        self._consuming = True

    def _on_copy(self, _: Any, method: Any, properties: Any, __: bytes) -> None:
        """The original is settled by now, and the copy with it; or the copy takes its place."""
        if not self._exchange(int(properties.correlation_id), method.delivery_tag):
            self._channel.raw.basic_ack(method.delivery_tag)
