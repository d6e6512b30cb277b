"""Delayed retries on brokers without delays: topics beside the consumer's own, one for each length of wait.

A message that is put aside is published to the retry topic of its group and tier, then acknowledged; so it neither
holds back the offset of its partition nor is lost with the process. It waits there, and at the head of the topic in a
consumer's memory, until it is due. Tiers keep long waits from standing before short ones.
"""

from collections.abc import Callable
from datetime import datetime
from math import inf
from typing import Final, TypeAlias

import msgspec

from things_kit.engine.clock import steady
from things_kit.engine.driver import Later
from things_kit.messaging.errors import DecodeError
from things_kit.messaging.message import Message

SHORT: Final = 1.0
"""Seconds up to which a message waits in memory instead: a topic would not make that safer, only slower."""

TIERS: Final = ((10.0, "10s"), (120.0, "2m"), (1800.0, "30m"), (inf, "1d"))
"""The longest wait of each tier, in seconds, and its name in the topic's."""


Postponed: TypeAlias = tuple[
    float, int, str, bytes, bytes | None, dict[str, str], int | None, int | None, datetime | None, str | None
]
"""A message in a retry topic, whole: when it is due, its next attempt, and all its fields but that one."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final[Callable[[bytes], Postponed]] = msgspec.msgpack.Decoder(Postponed).decode


def retry_topics(topic: str, group: str) -> list[str]:
    """The retry topics of a group, from the shortest wait to the longest."""
    return [f"{topic}-{group}-retry-{name}" for _, name in TIERS]


def is_retry_topic(topic: str) -> bool:
    """Whether a topic is named as one, so that a driver keeps what waits there."""
    return topic.endswith(tuple(f"-retry-{name}" for _, name in TIERS))


def postpone(copy: Later) -> Message:
    """The message to publish instead of handling this one now."""
    message, due = copy.message, copy.due.timestamp()
    wait = max(0.0, due - steady())
    tier = next(name for longest, name in TIERS if wait <= longest)
    *fields, _ = msgspec.structs.astuple(message.replace(headers=dict(message.headers)))
    return Message(
        f"{message.topic}-{copy.group}-retry-{tier}", _encode((due, copy.attempt, *fields)), message.key
    )


def remaining(carrier: Message) -> float:
    """For how many seconds a message in a retry topic still has to wait; 0 for what is not one of ours."""
    try:
        return max(0.0, _decode(carrier.value)[0] - steady())
    except msgspec.DecodeError:
        return 0.0


def restore(carrier: Message) -> Message:
    """The message that was put aside.

    Raises:
        DecodeError: The message in the retry topic is not one of ours.
    """
    try:
        held = _decode(carrier.value)
    except msgspec.DecodeError as error:
        raise DecodeError(
            f"the message in {carrier.topic!r} was not put there by a consumer: {error}"
        ) from error
    return Message(*held[2:], held[1])
