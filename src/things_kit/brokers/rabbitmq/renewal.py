"""What is held in a queue of the receiver's own: for longer than the broker waits (`consumer_timeout`), or with a mark.

RabbitMQ closes the channel of a consumer that holds a delivery for too long, and hands all that it held to others.

| RabbitMQ | its setting holds for | it can be lifted by |
|---|---|---|
| before 3.12 | all queues | nothing: what is held for long is renewed |
| 3.12 to 4.2 | all queues | an argument of the queue |
| from 4.3 on | quorum queues | an argument of the consumer |

Only an exclusive queue, which is made anew each time, is declared with that argument: 4.3 compares it with that of a queue that
exists, so a group's queue would be refused once its server is renewed. Groups renew what they hold up to 4.2.

A delivery that gets old is exchanged for a young one: a copy goes to a queue that only this receiver consumes, the original
is acknowledged once the copy is here, and whatever becomes of the original becomes of the copy. If the receiver dies, the copy is
ready in its queue again, where nobody takes it, and after a second it expires into the group's queue.

The same serves suspects (see `things_kit.engine.suspects`): nothing can be stored beside a message, so before a suspect is
handled it is exchanged for a copy with a mark. What comes out of such a queue by expiry was in a handler when its receiver was
lost, while what a receiver merely held comes back to the group's queue itself.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

import msgspec
from pika.spec import Basic, Queue

from things_kit.brokers.rabbitmq.amqp.channel import Channel
from things_kit.brokers.rabbitmq.counting import HELD
from things_kit.brokers.rabbitmq.options import handing_on
from things_kit.brokers.rabbitmq.publisher import Publisher
from things_kit.brokers.rabbitmq.wire import Token, pack_again
from things_kit.engine.clock import steady
from things_kit.engine.driver import Delivery

log = logging.getLogger("things_kit.rabbitmq")

FOREVER: Final[Mapping[str, int]] = {"x-consumer-timeout": 2**31 - 1}
"""Milliseconds, no more than the broker's timers take: 24 days."""

BY_QUEUE: Final = (3, 12)
BY_CONSUMER: Final = (4, 3)

STEPS: Final = 6
"""Looks in the time that the broker waits."""

OLD: Final = 4
"""After so many looks a delivery is old: two thirds of the time, and two more looks to exchange it in."""

GONE: Final = 3_600_000
"""Milliseconds after which the broker removes a queue whose receiver is gone; what was in it has left it long before."""

TAG: Final = "renewed"
"""The consumer of copies."""


class Patience(msgspec.Struct, frozen=True):
    """What a server is asked for so that handlers may take their time.

    Attributes:
        version: The server's; empty if it does not say.
        ephemeral: Of a receiver with an exclusive queue.
        kind: The type of the queue; None where it is not ours and so not known.
    """

    version: tuple[int, ...]
    ephemeral: bool
    kind: object

    @property
    def renews(self) -> bool:
        """Whether what is held for long has to be renewed."""
        return self.version < (BY_QUEUE if self.ephemeral else BY_CONSUMER)

    @property
    def of_queue(self) -> Mapping[str, int]:
        """Arguments of an exclusive queue."""
        return FOREVER if self.ephemeral and BY_QUEUE <= self.version < BY_CONSUMER else {}

    @property
    def of_consumer(self) -> Mapping[str, int]:
        """Arguments of the consumer. A queue that is no quorum queue refuses them: of an unknown one it is tried."""
        asks = not self.ephemeral and self.version >= BY_CONSUMER and self.kind in {"quorum", None}
        return FOREVER if asks else {}


def server_version(properties: Mapping[str, Any]) -> tuple[int, ...]:
    """Major and minor version of a RabbitMQ, by what it says of itself; empty for what is none, or hides it."""
    numbers = str(properties.get("version", "")).split(".")[:2]
    if properties.get("product") != "RabbitMQ" or not all(number.isdigit() for number in numbers):
        return ()
    return tuple(map(int, numbers))


class Renewal:
    """Copies of what a receiver holds, over its own channel; what comes is the receiver's to exchange.

    `arguments` are those of its consumers.
    """

    def __init__(
        self, channel: Channel, publisher: Publisher, queue: str, arguments: Mapping[str, int]
    ) -> None:
        self._channel = channel
        self._publisher = publisher
        self._queue = queue
        self._own = f"{HELD}{uuid4().hex}.{queue}"[:250]
        self._arguments = arguments
        self._consuming: asyncio.Future[Any] | None = None

    async def run(
        self, timeout: float, latest: Callable[[], int], old: Callable[[int], Sequence[Delivery]]
    ) -> None:
        """Renew what is held for long, until cancelled.

        Args:
            timeout: For how many seconds the broker waits.
            latest: Tells the tag of the newest delivery.
            old: Tells what is held up to a tag.
        """
        marks: list[int] = []
        while self._channel.error is None:
            await asyncio.sleep(timeout / STEPS)
            marks.append(latest())
            if len(marks) < OLD:
                continue
            try:
                await self.copy(old(marks.pop(0)))
            except Exception as error:  # noqa: BLE001 - whatever closed the channel
                if self._channel.error is None:  # else the receiver says so
                    log.warning("%s: what is held could not be renewed: %s", self._queue, error)

    async def copy(self, held: Sequence[Delivery]) -> None:
        """Publish copies of these, with their marks; each comes with the tag of what it is of. Raises what is in the way."""
        if not held:
            return
        if self._consuming is None or (self._consuming.done() and self._consuming.exception() is not None):
            self._consuming = asyncio.ensure_future(self._consume())
        await asyncio.shield(self._consuming)
        letters = []
        for delivery in held:
            token: Token = delivery.token
            mark = token.lost + 1 if delivery.suspect else 0
            letter = pack_again(token.message, self._own, steady(), token.message.attempt, mark)
            letter.properties.correlation_id = str(token.tag)
            letters.append(letter)
        for refusal in await self._publisher.publish(letters):
            if refusal is not None:
                raise refusal

    async def _consume(self) -> None:
        arguments = {**handing_on(self._queue, 1000), "x-expires": GONE}
        make = Queue.Declare(queue=self._own, durable=True, arguments=arguments)
        consume = Basic.Consume(queue=self._own, consumer_tag=TAG, arguments=dict(self._arguments))
        await self._channel.ask(make, Basic.Qos(prefetch_count=0), consume)
