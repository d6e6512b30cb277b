"""Messages for later: levels of queues in which messages expire, for all topics of a virtual host, and nobody consumes them.

A wait is a number of tenths of a second, and each level has one digit of it: the two lowest count to 32, all others to two. A
level is an exchange, and a queue for each digit but 0, in which messages live for as long as that digit is worth. The exchange
looks at its word of a routing key: a digit goes to its queue, and comes to the level below when it has expired; `0` goes to
the level below at once. So a message waits once for each of its digits, always behind messages with the same time to live:
none is held up by a longer wait, and messages of one wait keep their order. Four seconds are `8.1.ADDRESS`, which begin at level 1.

Below level 0 is the exchange of what is due. By the address, a hash, it finds the topic's own queue, whose messages expire at once
into the topic's exchange. They stay while nobody listens there, and hold back no other topic's. An address that is no more
is that of a topic that was removed, and what was on its way to it goes too.

All queues but the last are quorum queues that let go of what has expired once the next one has it (`at-least-once`).
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from pika.spec import Exchange, Queue

from things_kit.brokers.rabbitmq.admin import Admin
from things_kit.brokers.rabbitmq.names import DUE, GONE, Names, level_name, wait_queue
from things_kit.brokers.rabbitmq.options import Settings, handing_on
from things_kit.brokers.rabbitmq.publisher import Publisher, Unroutable
from things_kit.brokers.rabbitmq.wire import Letter, pack
from things_kit.engine.driver import ConnectionLost, Scheduled, UnknownTopic
from things_kit.messaging.errors import ConfigError, PublishError, UnsupportedError
from things_kit.messaging.message import Message

UNIT: Final = 100
"""Milliseconds that a message waits on the lowest level."""

RADIXES: Final = (32, 32, *(2,) * 19)
"""How far each level counts, the lowest first. Each queue that a message passes costs as much as a publish, so waits of less than
102 seconds, which many have, pass two."""

WORTH: Final = tuple(UNIT * math.prod(RADIXES[:level]) for level in range(len(RADIXES)))
"""Milliseconds that a 1 is worth on each level."""

LONGEST: Final = (math.prod(RADIXES) - 1) * UNIT / 1000
"""Seconds that a message waits on all levels together: 621 days."""

FLOOR: Final = -1
NOTHING: Final = -2
"""What is below all levels, and what is below that."""

Result: TypeAlias = Exception | None


class Ladder:
    """The levels of a virtual host, as far as this connection has seen them.

    They are made from the lowest up, when a wait needs them first: where the exchange of one is, all below it are whole.
    """

    def __init__(self, settings: Settings, names: Names, admin: Admin, publisher: Publisher) -> None:
        self._makes = settings.url.engine.declare
        self._names = names
        self._admin = admin
        self._publisher = publisher
        self._making = asyncio.Lock()
        self._seen = NOTHING  # the highest level that is whole
        self._torn = False  # something was missing below a level that was there
        self._ends: set[str] = set()  # topics that had their own queue here

    async def schedule(self, entries: Sequence[Scheduled], now: float) -> Sequence[Result]:
        """Publish what is due after `now`, each to the level at which its wait begins. Raises ConnectionLost."""
        waits = [entry.due.timestamp() - now for entry in entries]
        topics = {entry.message.topic for entry in entries}
        try:
            levels = [level_and_digits(wait)[0] for wait in waits if wait <= LONGEST]
            await self._make(max(levels, default=FLOOR))
            ends = {topic: await self._end(topic) for topic in topics}
        except ConfigError as error:
            return [error] * len(entries)
        results = [
            ends[entry.message.topic] if wait <= LONGEST else _too_far(entry)
            for entry, wait in zip(entries, waits, strict=True)
        ]
        sent = [index for index, refusal in enumerate(results) if refusal is None]
        letters = [self._letter(entries[index].message, waits[index]) for index in sent]
        for index, result in zip(sent, await self._publish(letters), strict=True):
            results[index] = result
        gone = {topic for topic, end in ends.items() if end is None and not await self._is_there(topic)}
        for index in sent:
            if (topic := entries[index].message.topic) in gone:
                results[index] = UnknownTopic(topic)
        return results

    def _letter(self, message: Message, wait: float) -> Letter:
        level, digits = level_and_digits(wait)
        return pack(message, level_name(level), False, f"{digits}.{self._names.address(message.topic)}")

    async def _publish(self, letters: Sequence[Letter]) -> Sequence[Result]:
        results = await self._publisher.publish(letters)
        if any(isinstance(result, Unroutable | UnknownTopic) for result in results):
            raise self._missing()
        return results

    def _missing(self) -> ConnectionLost:
        """What we thought was there is not; the engine tries again, and it is made anew."""
        self._seen, self._torn = NOTHING, True
        return ConnectionLost("some exchange or queue in which messages wait for their time is gone")

    # --- the levels

    async def _make(self, top: int) -> None:
        """Make the levels up to this one, where they are missing. Raises ConnectionLost, ConfigError."""
        async with self._making:
            if top <= self._seen:
                return
            exchange = level_name(top) if top > FLOOR else DUE
            self._admin.forget(exchange)
            there = await self._admin.has_exchange(exchange)
            if not there and not self._makes:
                raise ConfigError(
                    f"messages for later need the exchange {exchange!r} and its queues, which are not there, and the URL says "
                    "declare=false: publish one as far ahead with declare=true"
                )
            if self._makes:
                for level in range(top if there and not self._torn else self._seen + 1, top + 1):
                    await self._admin.ask(
                        f"making {exchange!r}", *(_floor() if level == FLOOR else _level(level))
                    )
            self._seen, self._torn = top, False

    # --- the topics' own queues

    async def _end(self, topic: str) -> Result:
        """See that a topic has its own queue; otherwise why it cannot. Raises ConnectionLost, ConfigError."""
        try:
            exchange, queue = self._names.exchange(topic), self._names.due_queue(topic)
        except ConfigError as error:
            return PublishError(str(error))
        if not self._makes:
            if await self._is_there(topic):
                return None
            return ConfigError(
                f"messages for later to {topic!r} need the queue {queue!r}, which is not there, and the URL says "
                "declare=false: publish one with declare=true"
            )
        bind = Queue.Bind(queue=queue, exchange=DUE, routing_key=f"#.{self._names.address(topic)}")
        doing = f"making the queue {queue!r}"
        if topic in self._ends and await self._admin.find(doing, bind) is not None:
            return None
        self._ends.discard(topic)
        self._admin.forget(exchange)
        if not await self._admin.has_exchange(exchange):
            return UnknownTopic(topic)
        key = "" if self._names.own_exchanges else self._names.routing_key(topic)
        arguments = handing_on(key, 0, exchange)
        make = Queue.Declare(queue=queue, durable=True, arguments=arguments)
        if await self._admin.find(doing, make, bind) is None:
            raise self._missing()
        self._ends.add(topic)
        return None

    async def _is_there(self, topic: str) -> bool:
        """Whether a topic has its own queue. Asked after a publish too: it was confirmed by other queues than this one."""
        return await self._admin.counts(self._names.due_queue(topic)) is not None


def level_and_digits(wait: float) -> tuple[int, str]:
    """The level at which a wait of so many seconds begins, and the words for the levels up to it."""
    units = max(1, math.ceil(round(wait * 1000, 3) / UNIT))
    digits = []
    for radix in RADIXES:
        units, digit = divmod(units, radix)
        digits.append(str(digit))
        if not units:
            break
    return len(digits) - 1, ".".join(digits)


def _level(level: int) -> list[Any]:
    """What makes a level, on top of those that there are."""
    name, below, words = level_name(level), level_name(level - 1) if level else DUE, "*." * level
    made: list[Any] = [
        Exchange.Declare(exchange=name, type="topic", durable=True),
        Exchange.Bind(destination=below, source=name, routing_key=f"{words}0.#"),
    ]
    for digit in range(1, RADIXES[level]):
        queue, arguments = wait_queue(level, digit), handing_on(None, digit * WORTH[level], below)
        made.append(Queue.Declare(queue=queue, durable=True, arguments=arguments))
        made.append(Queue.Bind(queue=queue, exchange=name, routing_key=f"{words}{digit}.#"))
    return made


def _floor() -> list[Any]:
    """What makes the exchange of what is due, and the queue for what no topic wants any more: all that it gets expires."""
    return [
        Exchange.Declare(exchange=GONE, type="fanout", durable=True),
        Queue.Declare(queue=GONE, durable=True, arguments={"x-queue-type": "quorum", "x-message-ttl": 0}),
        Queue.Bind(queue=GONE, exchange=GONE, routing_key=""),
        Exchange.Declare(exchange=DUE, type="topic", durable=True, arguments={"alternate-exchange": GONE}),
    ]


def _too_far(entry: Scheduled) -> UnsupportedError:
    return UnsupportedError(
        f"RabbitMQ keeps a message for {LONGEST / 86_400:.0f} days at the most, and not until {entry.due}"
    )
