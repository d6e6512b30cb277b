"""Protobuf, by the classes that protoc generates."""

import base64
from typing import Any, Final

from things_kit.codecs.framed import Framed, Write, by_class, framed_writer, unframed
from things_kit.codecs.schemas import Imported, Subject
from things_kit.codecs.subjects import subject_name
from things_kit.messaging.codec import Decode, Encode
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message
from things_kit.messaging.topic import Topic

try:
    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import Message as Generated
except ImportError as error:
    raise ConfigError('Protobuf needs protobuf: pip install "things-kit[protobuf]"') from error


KINDS: Final = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}
"""The names of fields' types."""


class Protobuf(Framed, frozen=True):
    """Protobuf in binary. Payload types are generated classes; plain values have the fields' names.

    Attributes:
        registry: Where schemas are registered, those of imported files by themselves; each value has the id of its own
            before it then, and its message's index.
        subject: How their subjects are named: "topic" is the default, "topic-record" for topics of several types.
    """

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
        writers = {value: _writer(kind, self.registry is not None) for value, kind in topic.kinds.items()}
        if self.registry is not None:
            subjects = self.subjects(topic)
            for value, write in writers.items():
                writers[value] = framed_writer(self.registry, subjects[value], topic, write)
        return by_class(topic, writers)

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

    def subjects(self, topic: Topic[Any]) -> dict[str | None, Subject]:
        """What a topic registers, by the header's value."""
        found: dict[str | None, Subject] = {}
        for value, kind in topic.kinds.items():
            file = kind.DESCRIPTOR.file
            imported: dict[str, Imported] = {}
            _collect(file, imported)
            name = subject_name(self.subject, topic, kind.DESCRIPTOR.full_name)
            found[value] = Subject(name, _source(file), "PROTOBUF", _imports(file), tuple(imported.values()))
        return found

    def described(self, topic: Topic[Any], value: str | None) -> dict[str, Any]:
        """What a document of the topic says of its bytes: fields by their numbers, of all messages in it."""
        descriptor = topic.kinds[value].DESCRIPTOR
        messages: dict[str, Any] = {}
        enums: dict[str, list[int]] = {}
        _describe(descriptor, messages, enums)
        return {"x-protobuf": {"message": descriptor.full_name, "messages": messages, "enums": enums}}


_BUILT_IN: Final = ("google/protobuf/", "google/type/", "confluent/")


def _collect(file: Any, found: dict[str, Imported]) -> None:
    """All files that a file imports, each after those that it imports itself."""
    for each in file.dependencies:
        if each.name not in found and not each.name.startswith(_BUILT_IN):
            _collect(each, found)
            found[each.name] = Imported(each.name, each.name, _source(each), _imports(each))


def _imports(file: Any) -> tuple[str, ...]:
    return tuple(each.name for each in file.dependencies if not each.name.startswith(_BUILT_IN))


def _writer(kind: Any, registered: bool) -> Write:
    write: Write = kind.SerializeToString
    if not registered:
        return write
    index = _index(kind.DESCRIPTOR)
    return lambda payload: index + write(payload)


def _describe(descriptor: Any, messages: dict[str, Any], enums: dict[str, list[int]]) -> None:
    fields = messages[descriptor.full_name] = {}
    for field in descriptor.fields:
        described = {"name": field.name, "type": KINDS[field.type], "label": _label(field)}
        if field.containing_oneof is not None and not field.containing_oneof.name.startswith("_"):
            described["oneof"] = field.containing_oneof.name
        if field.enum_type is not None:
            described["of"] = field.enum_type.full_name
            enums[field.enum_type.full_name] = sorted({each.number for each in field.enum_type.values})
        if field.message_type is not None:
            described["of"] = field.message_type.full_name
            if field.message_type.full_name not in messages:
                _describe(field.message_type, messages, enums)
        fields[str(field.number)] = described


def _label(field: Any) -> str:
    if hasattr(field, "is_repeated"):
        return "repeated" if field.is_repeated else "required" if field.is_required else "singular"
    labels = {FieldDescriptor.LABEL_REPEATED: "repeated", FieldDescriptor.LABEL_REQUIRED: "required"}
    return labels.get(field.label, "singular")  # as protobuf says it before 6.31


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
