"""Avro, by fastavro: the schema is the type's, or given."""

import io
import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final

import msgspec

from things_kit.codecs.avro_parsed import Imports, parsed_schema, plain_schema
from things_kit.codecs.avro_schema import avro_schema
from things_kit.codecs.framed import Framed, Write, by_class, framed_writer, unframed
from things_kit.codecs.json_codec import json_decoder, of_values
from things_kit.codecs.models import converter, dumped
from things_kit.codecs.schemas import Subject
from things_kit.codecs.subjects import check_registered, subject_name
from things_kit.messaging.codec import Decode, Encode, Unprepared
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message
from things_kit.messaging.topic import Topic

try:
    import fastavro
except ImportError as error:
    raise ConfigError('Avro needs fastavro: pip install "things-kit[avro]"') from error

_AS_THEY_ARE: Final[tuple[Any, ...]] = (str, int, float, bool, bytes, datetime, date, str | None, int | None)
"""Types of fields that fastavro takes as they are."""


class Avro(Framed, frozen=True):
    """Avro in binary, without a file's header: both sides need the schema, which is the topic's.

    With a registry each value says by which schema it was written, and reader's and writer's are resolved.

    Attributes:
        schema: The schema as a mapping or as JSON; by the header's value for a topic of several types. None: it is
            derived from the type.
        namespace: The namespace of a derived schema.
        references: Schemas that this one refers to by the names of their types, by the subjects under which they are
            registered: as mappings or JSON, or types of Python from which they are derived.
        registry: Where schemas are registered.
        subject: How their subjects are named: "topic" is the default, "topic-record" for topics of several types.
    """

    schema: Any = None
    namespace: str | None = None
    references: Mapping[str, Any] | None = None

    @property
    def content_type(self) -> str:
        """What the header `content-type` says."""
        return "application/avro" if self.registry is None else "application/vnd.confluent.avro"

    def encoder(self, topic: Topic[Any], /) -> Encode:
        """See `Codec.encoder`."""
        check_registered(self.registry, topic)
        if topic.version is not None:
            raise TypeError(
                "an Avro value does not say by which schema it was written, so it cannot be upcast"
            )
        writers = {value: _writer(self.schema_of(kind, value), kind) for value, kind in topic.kinds.items()}
        if self.registry is not None:
            subjects = self.subjects(topic)
            for value, write in writers.items():
                writers[value] = framed_writer(self.registry, subjects[value], topic, write)
        return by_class(topic, writers)

    def decoder(self, kind: Any, topic: Topic[Any] | None, /) -> Decode:
        """See `Codec.decoder`."""
        if kind is Any and topic is None and self.registry is None:
            raise TypeError("plain values of Avro need a topic's schema")
        if kind is not Any:
            # It refuses what cannot be told apart: fastavro's plain values are converted alike
            json_decoder(kind)
            value = None if topic is None else _value_of(topic, kind)
            schema = self.schema_of(kind, value)
            if self.schema is None and self.registry is None and _is_flat(kind):
                return _flat_reader(schema, kind)
            return self._reader(schema, converter(kind))
        if self.registry is not None or topic is None:
            return self._reader(None, None)
        readers = {value: _reader(self.schema_of(each, value), None) for value, each in topic.kinds.items()}
        by = topic.by

        def decode_plain(message: Message) -> Any:
            return readers[None if by is None else message.headers[by]](message)

        return decode_plain

    def _reader(self, schema: Any, convert: Callable[[Any], Any] | None) -> Decode:
        """By the topic's schema; with a registry by the writer's, resolved with that."""
        registry = self.registry
        if registry is None:
            return _reader(schema, convert)
        written: dict[int, Any] = {}

        def decode(message: Message) -> Any:
            identity, start = unframed(message.value)
            writer = written.get(identity)
            if writer is None:
                stored = registry.stored(identity)
                if stored is None:
                    raise Unprepared(registry.fetch(identity))
                if stored.kind != "AVRO":
                    raise ValueError(f"the schema {identity} is {stored.kind}")
                writer = written[identity] = parsed_schema(stored.schema, stored.imported)
            return read_plain(message.value[start:], writer, schema, convert)

        return decode

    def subjects(self, topic: Topic[Any]) -> dict[str | None, Subject]:
        """What a topic registers, by the header's value."""
        found: dict[str | None, Subject] = {}
        imports = self._imports()
        for value, kind in topic.kinds.items():
            plain = plain_schema(self._unparsed(kind, value))
            record = plain.get("name", "value") if isinstance(plain, dict) else "value"
            if isinstance(plain, dict) and plain.get("namespace") and "." not in record:
                record = f"{plain['namespace']}.{record}"
            name = subject_name(self.subject, topic, record)
            found[value] = Subject(name, json.dumps(plain), "AVRO", *imports.of(plain))
        return found

    def described(self, topic: Topic[Any], value: str | None) -> dict[str, Any]:
        """What a document of the topic says of its bytes: the schema, after those that it refers to."""
        plain = plain_schema(self._unparsed(topic.kinds[value], value))
        _, imported = self._imports().of(plain)
        return {"x-avro": [*(json.loads(each.schema) for each in imported), plain]}

    def schema_of(self, kind: Any, value: str | None) -> Any:
        """The schema of a type, ready for fastavro. Raises TypeError where there is none."""
        return parsed_schema(self._unparsed(kind, value), self._imports().texts)

    def _unparsed(self, kind: Any, value: str | None) -> Any:
        given = self.schema
        if given is not None and value is not None:
            given = given.get(value) if isinstance(given, Mapping) else None
            if given is None:
                raise TypeError(f"schema= has none for {value!r}")
        return self._derived(kind) if given is None else given

    def _derived(self, kind: Any) -> Any:
        """A type's schema, in which those that are registered by themselves have their names alone."""
        references = (self.references or {}).values()
        elsewhere = [each for each in references if not _is_schema(each) and each != kind]
        return avro_schema(kind, self.namespace, elsewhere)

    def _imports(self) -> Imports:
        references = self.references or {}
        return Imports({
            subject: each if _is_schema(each) else self._derived(each) for subject, each in references.items()
        })  # fmt: skip


def _is_schema(given: Any) -> bool:
    return isinstance(given, str | Mapping | list)


def _writer(schema: Any, kind: Any) -> Write:
    plain_of = _plain_values(schema, kind)
    write, stream_of = fastavro.schemaless_writer, io.BytesIO

    def encode(payload: Any) -> bytes:
        plain = plain_of(payload)
        stream = stream_of()
        try:
            write(stream, schema, plain)
        except Exception as error:
            raise TypeError(f"the payload does not fit its Avro schema: {error}") from error
        return stream.getvalue()

    return encode


def _plain_values(schema: Any, kind: Any) -> Callable[[Any], Any]:
    """From a payload to what fastavro takes; a flat Struct needs no more than its fields."""
    if _is_flat(kind):
        return msgspec.structs.asdict
    kept: tuple[type, ...] = (bytes, datetime, date, time)
    if '"decimal"' in json.dumps(schema, default=str):
        kept = (*kept, Decimal)
    return lambda payload: msgspec.to_builtins(payload, builtin_types=kept, str_keys=True, enc_hook=dumped)


def _is_flat(kind: Any) -> bool:
    """Whether it is a Struct of fields that fastavro takes and gives as they are."""
    if not isinstance(kind, type) or not issubclass(kind, msgspec.Struct):
        return False
    fields = msgspec.structs.fields(kind)
    same = all(field.name == field.encode_name and field.type in _AS_THEY_ARE for field in fields)
    return same and kind.__struct_config__.tag is None


def _reader(schema: Any, convert: Callable[[Any], Any] | None) -> Decode:
    """As `read_plain`, without its calls for each message."""
    if convert is None:
        return lambda message: read_plain(message.value, schema)
    read, stream_of = fastavro.schemaless_reader, io.BytesIO

    def read_value(value: bytes) -> Any:
        stream = stream_of(value)
        plain = read(stream, schema, None)
        if stream.tell() != len(value):
            raise _too_long(stream, value)
        return convert(plain)

    return of_values(lambda message: read_value(message.value), read_value)


def _flat_reader(schema: Any, kind: Any) -> Decode:
    """The same to a flat Struct, out of its own schema: nobody has to look at the types again."""
    read, stream_of = fastavro.schemaless_reader, io.BytesIO

    def read_value(value: bytes) -> Any:
        stream = stream_of(value)
        plain: Any = read(stream, schema, None)
        if stream.tell() != len(value):
            raise _too_long(stream, value)
        return kind(**plain)

    return of_values(lambda message: read_value(message.value), read_value)


def read_plain(
    value: bytes, writer: Any, reader: Any = None, convert: Callable[[Any], Any] | None = None
) -> Any:
    """A value by its writer's schema, resolved with the reader's. Raises ValueError for what is too long."""
    stream = io.BytesIO(value)
    plain = fastavro.schemaless_reader(stream, writer, reader)
    if stream.tell() != len(value):
        raise _too_long(stream, value)
    return plain if convert is None else convert(plain)


def _too_long(stream: io.BytesIO, value: bytes) -> ValueError:
    return ValueError(f"{len(value) - stream.tell()} bytes follow the value")


def _value_of(topic: Topic[Any], kind: Any) -> str | None:
    return next((value for value, each in topic.kinds.items() if each is kind or each == kind), None)
