"""Avro, by fastavro: the schema is the type's, or given."""

import io
import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import msgspec

from things_kit.codecs.avro_schema import Schema, avro_schema
from things_kit.codecs.json_codec import json_decoder
from things_kit.codecs.models import converter, dumped
from things_kit.messaging.codec import Decode, Encode
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message
from things_kit.messaging.topic import Topic

try:
    import fastavro
    from fastavro.schema import SchemaParseException, UnknownType
except ImportError as error:
    raise ConfigError('Avro needs fastavro: pip install "things-kit[avro]"') from error

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_LARGEST_SCHEMA: Final = 1 << 20


class Avro(msgspec.Struct, frozen=True):
    """Avro in binary, without a file's header: both sides need the schema, which is the topic's.

    Attributes:
        schema: The schema as a mapping or as JSON; by the header's value for a topic of several types. None: it is
            derived from the type.
        namespace: The namespace of a derived schema.
    """

    schema: Any = None
    namespace: str | None = None

    @property
    def content_type(self) -> str:
        """What the header `content-type` says."""
        return "application/avro"

    def encoder(self, topic: Topic[Any], /) -> Encode:
        """See `Codec.encoder`."""
        if topic.version is not None:
            raise TypeError(
                "an Avro value does not say by which schema it was written, so it cannot be upcast"
            )
        writers = {
            _class_of(kind): _writer(self.schema_of(kind, value)) for value, kind in topic.kinds.items()
        }
        if len(writers) == 1:
            write = next(iter(writers.values()))
            return lambda payload: (write(payload), _NOTHING)
        return lambda payload: (writers[type(payload)](payload), _NOTHING)

    def decoder(self, kind: Any, topic: Topic[Any] | None, /) -> Decode:
        """See `Codec.decoder`."""
        if kind is not Any:
            json_decoder(
                kind
            )  # which refuses what cannot be told apart: fastavro's plain values are converted alike
            value = None if topic is None else _value_of(topic, kind)
            return _reader(self.schema_of(kind, value), converter(kind))
        if topic is None:
            raise TypeError("plain values of Avro need a topic's schema")
        readers = {value: _reader(self.schema_of(each, value), None) for value, each in topic.kinds.items()}
        by = topic.by

        def decode_plain(message: Message) -> Any:
            return readers[None if by is None else message.headers[by]](message)

        return decode_plain

    async def prepare(self, topic: Topic[Any], /) -> None:
        """Nothing is needed."""

    def schema_of(self, kind: Any, value: str | None) -> Any:
        """The schema of a type, ready for fastavro. Raises TypeError where there is none."""
        given = self.schema
        if given is not None and value is not None:
            given = given.get(value) if isinstance(given, Mapping) else None
            if given is None:
                raise TypeError(f"schema= has none for {value!r}")
        return parsed_schema(avro_schema(kind, self.namespace) if given is None else given)


def parsed_schema(schema: Schema | Mapping[str, Any]) -> Any:
    """A schema, ready for fastavro. Raises TypeError for what is none."""
    if isinstance(schema, str) and len(schema) > _LARGEST_SCHEMA:
        raise TypeError("the schema is larger than 1 MiB")
    try:
        if isinstance(schema, str) and schema.lstrip()[:1] in {"{", "[", '"'}:
            schema = json.loads(schema)
        return fastavro.parse_schema(schema)  # type: ignore[arg-type] # what is none is refused
    except (SchemaParseException, UnknownType, ValueError, KeyError, AttributeError, TypeError) as error:
        raise TypeError(f"it is no Avro schema: {error}") from error
    except RecursionError:
        raise TypeError("the Avro schema is nested too deeply") from None


def _writer(schema: Any) -> Callable[[Any], bytes]:
    kept: tuple[type, ...] = (bytes, datetime, date, time)
    if '"decimal"' in json.dumps(schema, default=str):
        kept = (*kept, Decimal)
    write, stream_of = fastavro.schemaless_writer, io.BytesIO

    def encode(payload: Any) -> bytes:
        plain = msgspec.to_builtins(payload, builtin_types=kept, str_keys=True, enc_hook=dumped)
        stream = stream_of()
        try:
            write(stream, schema, plain)
        except Exception as error:
            raise TypeError(f"the payload does not fit its Avro schema: {error}") from error
        return stream.getvalue()

    return encode


def _reader(schema: Any, convert: Callable[[Any], Any] | None) -> Decode:
    read, stream_of = fastavro.schemaless_reader, io.BytesIO

    def decode(message: Message) -> Any:
        stream = stream_of(message.value)
        plain = read(stream, schema, None)
        if stream.tell() != len(message.value):
            raise ValueError(f"{len(message.value) - stream.tell()} bytes follow the value")
        return plain if convert is None else convert(plain)

    return decode


def _value_of(topic: Topic[Any], kind: Any) -> str | None:
    return next((value for value, each in topic.kinds.items() if each is kind or each == kind), None)


def _class_of(kind: Any) -> Any:
    return kind if isinstance(kind, type) else UUID  # one kind alone need not be told from others
