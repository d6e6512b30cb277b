"""Waiting in the broker: queues whose messages expire into the queue that they came from.

A queue with a limit on the life of its messages hands them on in order, so each length of wait needs a queue of its own, or
a long wait at its head holds up the short ones behind it. These are powers of eight seconds, for each group that ever had
something to wait: a wait is made of several, longest first, and its last second is waited out by the receiver. RabbitMQ
hands on what expired only once the target has confirmed it (the strategy `at-least-once`).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from things_kit.brokers.rabbitmq.errors import missing, translated
from things_kit.brokers.rabbitmq.link import Channel
from things_kit.messaging.errors import ConfigError

TIERS: Final = tuple(8**power for power in range(6))
"""Seconds; the longest is nine hours, and longer waits take several of those."""

Ask = Callable[[Callable[[Channel], Coroutine[Any, Any, Any]]], Coroutine[Any, Any, Any]]
"""Has a question asked over a channel that may be lost over it."""


def delay_queue(queue: str, tier: int) -> str:
    """The queue in which messages of another wait for so many seconds."""
    return f".things-kit.delay-{tier}s.{queue}"


def hop(queue: str, wait: float) -> str:
    """Where a message goes that may come again in so many seconds: the longest tier that is not too long.

    Waits under a second go straight back to the queue: whoever receives the message then waits them out.
    """
    fitting = [tier for tier in TIERS if tier <= wait]
    return delay_queue(queue, fitting[-1]) if fitting else queue


class Delays:
    """Knows which queues have their delay queues, and makes them."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._made: set[str] = set()
        self._making = asyncio.Lock()

    def forget(self, queue: str) -> None:
        """The queue was removed, and its delay queues with it."""
        self._made.discard(queue)

    async def make(self, queue: str) -> None:
        """Make all of a queue's, the longest last: where that is, all are. Raises ConnectionLost, ConfigError."""
        async with self._making:
            if queue in self._made:
                return

            async def declare(channel: Channel) -> None:
                for tier in TIERS:
                    arguments = {
                        "x-queue-type": "quorum",
                        "x-message-ttl": 1000 * tier,
                        "x-dead-letter-exchange": "",
                        "x-dead-letter-routing-key": queue,
                        "x-dead-letter-strategy": "at-least-once",
                        "x-overflow": "reject-publish",
                    }
                    raw = channel.raw
                    await channel.ask(
                        raw.queue_declare, delay_queue(queue, tier), durable=True, arguments=arguments
                    )

            try:
                await self._ask(declare)
            except ConfigError:
                raise
            except Exception as error:  # whatever closed the channel
                raise translated(error) from error
            self._made.add(queue)

    async def waiting(self, queue: str) -> int:
        """How many messages wait in a queue's delay queues."""

        async def count(channel: Channel) -> int:
            total = 0
            for tier in reversed(TIERS):
                raw = channel.raw
                answer = await channel.ask(raw.queue_declare, delay_queue(queue, tier), passive=True)
                total += answer.message_count
            return total

        try:
            counted: int = await self._ask(count)
        except Exception as error:  # whatever closed the channel
            if missing(error):
                self._made.discard(queue)
                return 0
            raise translated(error) from error
        self._made.add(queue)
        return counted
