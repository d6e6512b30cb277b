"""Protobuf, by the classes that protoc generates."""

import base64
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from things_kit.codecs.registry import Reference, Schemas, Subject, framed, unframed
from things_kit.codecs.subjects import Naming, check_naming, identity_of, subject_name
from things_kit.messaging.codec import Decode, Encode
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message
from things_kit.messaging.topic import Topic

try:
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import Message as Generated
except ImportError as error:
    raise ConfigError('Protobuf needs protobuf: pip install "things-kit[protobuf]"') from error

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Protobuf(msgspec.Struct, frozen=True):
    """Protobuf in binary. Payload types are generated classes; plain values have the fields' names.

    Attributes:
        registry: Where schemas are registered; each value has the id of its own before it then, and its message's index.
        subject: How their subjects are named: "topic" is the default, "topic-record" for topics of several types.
    """

    registry: Schemas | None = None
    subject: Naming | None = None

    def __post_init__(self) -> None:
        check_naming(self.registry, self.subject)

    @property
    def content_type(self) -> str:
        """What the header `content-type` says."""
        return "application/protobuf" if self.registry is None else "application/vnd.confluent.protobuf"

    def encoder(self, topic: Topic[Any], /) -> Encode:
        """See `Codec.encoder`."""
        if topic.version is not None:
            raise TypeError("Protobuf resolves versions itself, by the numbers of fields")
        for kind in topic.kinds.values():
            check_generated(kind)
        registry = self.registry
        if registry is None:
            return lambda payload: (payload.SerializeToString(), _NOTHING)
        for kind in topic.kinds.values():
            subject_name(self.subject, topic, kind.DESCRIPTOR.full_name)
        prefixes: dict[type, bytes] = {}

        def encode(payload: Any) -> tuple[bytes, Mapping[str, str]]:
            kind = type(payload)
            if kind not in prefixes:
                subject = self._prepared(topic, kind)
                prefixes[kind] = framed(identity_of(registry, subject, topic)) + _index(kind.DESCRIPTOR)
            return prefixes[kind] + payload.SerializeToString(), _NOTHING

        return encode

    def decoder(self, kind: Any, topic: Topic[Any] | None, /) -> Decode:
        """See `Codec.decoder`."""
        start = (lambda value: 0) if self.registry is None else _start
        if kind is not Any:
            check_generated(kind)
            parse = kind.FromString
            return lambda message: parse(message.value[start(message.value) :])
        if topic is None:
            raise TypeError("plain values of Protobuf need a topic's type")
        kinds, by = topic.kinds, topic.by

        def decode_plain(message: Message) -> Any:
            kind = kinds[None if by is None else message.headers[by]]
            return plain(kind.FromString(message.value[start(message.value) :]))

        return decode_plain

    async def prepare(self, topic: Topic[Any], /) -> None:
        """Look up the schemas, or register them, those that they import first."""
        if self.registry is not None:
            for subject in (await self.subjects(topic)).values():
                _subjects[self.registry, subject.name] = subject
                await self.registry.prepare(subject)

    async def subjects(self, topic: Topic[Any]) -> dict[str | None, Subject]:
        """What a topic registers, by the header's value; what they import is registered by this."""
        found: dict[str | None, Subject] = {}
        for value, kind in topic.kinds.items():
            file = kind.DESCRIPTOR.file
            references = await self._references(file)
            name = subject_name(self.subject, topic, kind.DESCRIPTOR.full_name)
            found[value] = Subject(name, _source(file), "PROTOBUF", references)
        return found

    def _prepared(self, topic: Topic[Any], kind: Any) -> Subject:
        name = subject_name(self.subject, topic, kind.DESCRIPTOR.full_name)
        bare = Subject(name, _source(kind.DESCRIPTOR.file), "PROTOBUF")
        return _subjects.get((self.registry, name), bare)

    async def _references(self, file: Any) -> tuple[Reference, ...]:
        assert self.registry is not None  # noqa: S101 - whoever calls has looked
        found: list[Reference] = []
        for each in file.dependencies:
            if not each.name.startswith(_BUILT_IN):
                subject = Subject(each.name, _source(each), "PROTOBUF", await self._references(each))
                version = await self.registry.version_of(subject)
                found.append(Reference(each.name, each.name, version))
        return tuple(found)


_BUILT_IN: Final = ("google/protobuf/", "google/type/", "confluent/")
_subjects: Final[dict[tuple[Schemas | None, str], Subject]] = {}
"""What was prepared, by registry and name: references need versions, which only preparing knows."""


def _source(file: Any) -> str:
    """A file's descriptor as Confluent's clients register it."""
    return base64.b64encode(file.serialized_pb).decode()


def _index(descriptor: Any) -> bytes:
    """Which message of its file it is: zigzag varints, their number first; the first message alone is one zero."""
    path: list[int] = []
    while descriptor is not None:
        parent = descriptor.containing_type
        siblings = (
            parent.nested_types if parent is not None else descriptor.file.message_types_by_name.values()
        )
        path.insert(0, [each.name for each in siblings].index(descriptor.name))
        descriptor = parent
    return b"\x00" if path == [0] else b"".join(_varint(number) for number in (len(path), *path))


def _varint(number: int) -> bytes:
    number <<= 1  # zigzag, of what is never negative
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _start(value: bytes) -> int:
    """Where the message begins. Raises ValueError for a value without id or index."""
    _, start = unframed(value)
    count, start = _read_varint(value, start)
    if count > MOST_NESTED:
        raise ValueError(f"its index says that it is nested {count} times")
    for _ in range(count):
        _, start = _read_varint(value, start)
    return start


MOST_NESTED: Final = 100


def _read_varint(value: bytes, start: int) -> tuple[int, int]:
    number = shift = 0
    while start < len(value) and shift < 64:
        number |= (value[start] & 0x7F) << shift
        start += 1
        if value[start - 1] < 0x80:
            return (number >> 1) ^ -(number & 1), start
        shift += 7
    raise ValueError("it ends in the index of its message")


def check_generated(kind: Any) -> None:
    """Raise TypeError for what is no generated class."""
    if not isinstance(kind, type) or not issubclass(kind, Generated) or kind is Generated:
        raise TypeError("it is no class that protoc generates")


def plain(message: Any) -> dict[str, Any]:
    """The plain values of a generated message."""
    values: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return values
