"""How much the consumers of a queue hold: AMQP tells what is ready in a queue, and not what was handed out.

Every receiver of ours listens on its own channel to questions with the name of its queue, and answers how much it has not
settled. Questions and answers go over the connection that publishes: one that publishes may be blocked, and consumers are
not to be. As the broker tells how many consumers a queue has, whoever asks knows whether all have answered.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from pika.spec import BasicProperties

from things_kit.brokers.rabbitmq.link import Channel
from things_kit.brokers.rabbitmq.names import CENSUS
from things_kit.brokers.rabbitmq.packing import Letter

PATIENCE: Final = (0.02, 0.08, 0.3, 0.8)
"""Seconds for all consumers to answer, in one try after the other: one that is not ours never does, and one that left is
counted for a moment longer."""

RETURNED: Final = "returned"
"""The type of messages that tell what comes back."""

REPLIES: Final = "amq.rabbitmq.reply-to"
"""RabbitMQ's own queue for answers to whoever asks on the same channel."""


async def take_part(
    channel: Channel,
    queue: str,
    held: Callable[[], int],
    hear: Callable[[bytes], None],
    say: Callable[[Sequence[Letter]], object],
) -> None:
    """Answer questions about a queue over the channel of its receiver, and hear what others tell."""
    raw = channel.raw
    await channel.ask(raw.exchange_declare, CENSUS, exchange_type="direct", durable=True)
    own = (await channel.ask(raw.queue_declare, "", exclusive=True, auto_delete=True)).queue
    await channel.ask(raw.queue_bind, own, CENSUS, routing_key=queue)

    def answer(_: Any, __: Any, properties: Any, body: bytes) -> None:
        if properties.type == RETURNED:
            hear(body)
        elif properties.reply_to:
            say([Letter("", properties.reply_to, BasicProperties(headers={}), b"%d" % held())])

    await channel.ask(raw.basic_consume, own, answer, auto_ack=True)


def news(queue: str, notes: Sequence[bytes]) -> list[Letter]:
    """Letters that tell all receivers of a queue what is about to come back."""
    properties = BasicProperties(headers={}, type=RETURNED)
    return [Letter(CENSUS, queue, properties, note) for note in notes]


async def held(channel: Channel, queue: str, consumers: int, patience: float) -> int | None:
    """What so many consumers of a queue hold; None if not all of them say so. The channel is used up by it."""
    counts: list[int] = []
    complete = asyncio.Event()

    def heard(_: Any, __: Any, ___: Any, body: bytes) -> None:
        counts.append(int(body))
        if len(counts) >= consumers:
            complete.set()

    raw = channel.raw
    await channel.ask(raw.exchange_declare, CENSUS, exchange_type="direct", durable=True)
    await channel.ask(raw.basic_consume, REPLIES, heard, auto_ack=True)
    raw.basic_publish(CENSUS, queue, b"", BasicProperties(reply_to=REPLIES))
    channel.on_lost(lambda _: complete.set())
    try:
        async with asyncio.timeout(patience):
            await complete.wait()
    except TimeoutError:
        return None
    return sum(counts) if channel.error is None else None
