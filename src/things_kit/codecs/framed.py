"""Confluent's format: a zero, and the id of the value's schema, before each value."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from things_kit.codecs.schemas import Schemas, Subject
from things_kit.codecs.subjects import Naming, check_naming, identity_of, prepare_all
from things_kit.messaging.codec import Encode, bare
from things_kit.messaging.topic import Topic

MAGIC: Final = 0
"""The first byte of a value; the id of the schema follows in four."""

Write = Callable[[Any], bytes]


class Framed(msgspec.Struct, frozen=True, kw_only=True):
    """A codec whose values say by which schema of a registry they were written, where there is one.

    Attributes:
        registry: Where schemas are registered.
        subject: How their subjects are named: "topic" is the default, "topic-record" for topics of several types.
    """

    registry: Schemas | None = None
    subject: Naming | None = None

    def __post_init__(self) -> None:
        check_naming(self.registry, self.subject)

    def subjects(self, topic: Topic[Any]) -> dict[str | None, Subject]:
        """What a topic registers, by the header's value."""
        raise NotImplementedError

    async def prepare(self, topic: Topic[Any], /) -> None:
        """Look up the schemas, or register them, those that they refer to first."""
        if self.registry is not None:
            await prepare_all(self.registry, self.subjects(topic))


def framed(identity: int) -> bytes:
    """What goes before a value."""
    return bytes([MAGIC]) + identity.to_bytes(4, "big")


def unframed(value: bytes) -> tuple[int, int]:
    """The id of a value's schema, and where its bytes begin. Raises ValueError for a value that has none."""
    if len(value) < 5:
        raise ValueError(f"it has {len(value)} bytes, too few for the id of a schema")
    if value[0] != MAGIC:
        raise ValueError(f"it begins with the byte {value[0]}, not {MAGIC}: it has no id of a schema")
    return int.from_bytes(value[1:5], "big"), 5


def framed_writer(registry: Schemas, subject: Subject, topic: Topic[Any], write: Write) -> Write:
    """Like `write`, with the id of the schema before each value. It raises ConfigError before that was prepared."""
    prefix = b""

    def write_framed(payload: Any) -> bytes:
        nonlocal prefix
        prefix = prefix or framed(identity_of(registry, subject, topic))
        return prefix + write(payload)

    return write_framed


def by_class(topic: Topic[Any], writers: Mapping[str | None, Write]) -> Encode:
    """An encoder of all types of a topic, from the writer of each by the header's value."""
    if topic.by is None:
        return bare(writers[None])
    by_type = {topic.kinds[value]: write for value, write in writers.items()}
    return bare(lambda payload: by_type[type(payload)](payload))
