"""Publishing for later on brokers that keep nothing until then: topics of fixed waits, in which a message goes on and on.

All that is in one of these topics waits equally long, so what comes first is due first. A message is written, whole, to
the topic of the longest wait that fits; the carrier (see `carrying`) takes it up when that is over, and writes it to the
next that fits, or to its target. A broker whose topics have partitions has one topic, with a partition for each wait.
"""

import asyncio
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from things_kit.engine.clock import steady
from things_kit.engine.driver import Scheduled
from things_kit.engine.transmission import Transmission
from things_kit.messaging.errors import UnsupportedError
from things_kit.messaging.message import Message
from things_kit.messaging.names import DEAD_LETTER_GROUP

TOPIC: Final = "things-kit-later"
"""The topic in which messages wait; or how the names of several begin, one for each wait."""

CARRIER: Final = "things-kit-carrier"
"""The group of all processes that carry messages on."""

DEAD_LETTER: Final = f"{TOPIC}-dlq"
"""Where messages go whose target does not take them."""

WAITS: Final = (
    (1.0, "1s"),
    (5.0, "5s"),
    (25.0, "25s"),
    (120.0, "2m"),
    (600.0, "10m"),
    (3600.0, "1h"),
    (21_600.0, "6h"),
    (86_400.0, "1d"),
)
"""The waits, in seconds, and what the name of each one's topic ends with."""

SLACK: Final = 0.25
"""Seconds by which a wait may be longer than what is left: what has just been taken up is a moment late always."""

SHORT: Final = 1.0
"""Seconds that a message is kept by who carries it, when its time comes so soon after the wait."""

LEASE: Final = 10.0
"""Seconds after which others carry on what a process had taken up that died, at the most."""

_NAMES: Final = (TOPIC, *(f"{TOPIC}-{name}" for _, name in WAITS))


def is_wait_topic(topic: str) -> bool:
    """Whether a topic is named as one of these, perhaps after a prefix."""
    return topic.endswith(_NAMES)


def lease_for(topic: str, lease: float) -> float:
    """The lease of what is consumed from a topic, by a process whose URL says this one.

    What waits is everybody's: who may hold their own messages for an hour must not keep others' for as long when they die.
    """
    return min(lease, LEASE) if is_wait_topic(topic) else lease


def wait_topics(*, partitions: bool) -> Sequence[str]:
    """Their names, that of the shortest wait first."""
    return _NAMES[:1] if partitions else _NAMES[1:]


class Waiting(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a message in a wait topic carries: when it is to be taken up, when it is due, and the message itself."""

    until: float
    due: float
    message: Message


_encode: Final = msgspec.msgpack.Encoder().encode
waiting: Final = msgspec.msgpack.Decoder(Waiting).decode
"""What is in a message of a wait topic. Raises msgspec.DecodeError if that is not one of ours."""


def put_off(message: Message, due: float, *, partitions: bool) -> Message:
    """The message to publish instead of this one, that is due at a time later than now."""
    now = steady()
    number = max((n for n, (wait, _) in enumerate(WAITS) if wait <= due - now + SLACK), default=0)
    until = now + WAITS[number][0]
    if due - until < SHORT:
        until = due
    whole = message.replace(headers=dict(message.headers))
    return Message(
        TOPIC if partitions else _NAMES[1 + number],
        _encode(Waiting(until, due, whole)),
        message.key,  # some brokers keep order by that alone
        partition=number if partitions else None,
        timestamp=datetime.fromtimestamp(now, UTC),  # by which some brokers tell how old it is
        id=f"{message.id}~{until:.6f}",  # one of its own each time: brokers drop what they have seen
    )


class WaitTopics:
    """Schedules by these topics, as a driver does that is `Scheduling`."""

    def __init__(self, transmission: Transmission) -> None:
        self._transmission = transmission
        self._native = transmission.driver.capabilities

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        """See `Scheduling`. What is due is published at once."""
        results: list[Exception | None] = [None] * len(entries)
        now = steady()
        published: dict[int, Message] = {}
        waits: dict[int, Message] = {}
        for index, entry in enumerate(entries):
            due = entry.due.timestamp()
            if due <= now:
                published[index] = entry.message
            elif due - now > self._native.carried:
                results[index] = self._too_far()
            else:
                waits[index] = put_off(entry.message, due, partitions=self._native.partitions)
        if waits:
            await declare(self._transmission)
        for messages, insist in ((waits, True), (published, False)):
            sent = await self._send(list(messages.values()), insist=insist) if messages else ()
            for index, result in zip(messages, sent, strict=True):
                results[index] = result
        return results

    async def _send(self, messages: Sequence[Message], *, insist: bool) -> Sequence[Exception | None]:
        deadline = asyncio.get_running_loop().time() + self._transmission.url.engine.publish_timeout
        return await self._transmission.send(messages, deadline, insist=insist)

    def _too_far(self) -> UnsupportedError:
        most = math.floor(self._native.carried / 86_400)
        return UnsupportedError(f"{self._transmission.url.display} keeps a message for {most} days at most")


async def declare(transmission: Transmission) -> None:
    """Have the topics, the carrier's group and its dead letter. Raises BrokerUnavailable, ConfigError."""
    if not transmission.url.engine.declare:
        return
    topics = wait_topics(partitions=transmission.driver.capabilities.partitions)
    wanted = [(DEAD_LETTER, DEAD_LETTER_GROUP), *((topic, CARRIER) for topic in topics)]
    missing = [each for each in wanted if not transmission.has_declared(*each)]
    if missing:
        await asyncio.gather(*(transmission.declare(topic, [group]) for topic, group in missing))
        transmission.carries.set()
