"""What is asked of a document before it is looked into: that each thing is of the kind that it has to be.

Only what is compared is described here; everything else of a document may be as it likes.
"""

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from things_kit.messaging.errors import ConfigError

Number: TypeAlias = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Schemas: TypeAlias = Annotated[list["bool | Schema"], msgspec.Meta(min_length=1)]


class Channel(msgspec.Struct):
    """A channel of a document."""

    address: str | None = None
    messages: dict[str, dict[str, Any]] | None = None


class Document(msgspec.Struct):
    """An AsyncAPI document."""

    asyncapi: Annotated[str, msgspec.Meta(pattern=r"^3\.")]
    channels: dict[str, Channel] | None = None


class Message(msgspec.Struct, rename={"content_type": "contentType", "by": "x-type-header",
                                      "version": "x-version", "accepts_newer": "x-accepts-newer"}):  # fmt: skip
    """A message of a document."""

    name: str | UnsetType = UNSET
    content_type: str | UnsetType = UNSET
    by: str | UnsetType = UNSET
    version: Annotated[int, msgspec.Meta(ge=1)] | UnsetType = UNSET
    accepts_newer: bool | UnsetType = UNSET


class Schema(msgspec.Struct, rename="camel"):
    """A JSON schema."""

    reference: str | UnsetType = msgspec.field(name="$ref", default=UNSET)
    type: str | list[str] | UnsetType = UNSET
    enum: list[Any] | UnsetType = UNSET
    any_of: Schemas | UnsetType = UNSET
    one_of: Schemas | UnsetType = UNSET
    all_of: Schemas | UnsetType = UNSET
    properties: "dict[str, bool | Schema] | UnsetType" = UNSET
    additional_properties: "bool | Schema | UnsetType" = UNSET
    property_names: "bool | Schema | UnsetType" = UNSET
    min_properties: Size | UnsetType = UNSET
    max_properties: Size | UnsetType = UNSET
    required: list[str] | UnsetType = UNSET
    items: "bool | Schema | list[bool | Schema] | UnsetType" = UNSET
    minimum: Number | UnsetType = UNSET
    maximum: Number | UnsetType = UNSET
    exclusive_minimum: Number | UnsetType = UNSET
    exclusive_maximum: Number | UnsetType = UNSET
    multiple_of: Annotated[float, msgspec.Meta(gt=0, le=1e300)] | UnsetType = UNSET
    min_length: Size | UnsetType = UNSET
    max_length: Size | UnsetType = UNSET
    min_items: Size | UnsetType = UNSET
    max_items: Size | UnsetType = UNSET


class AvroField(msgspec.Struct):
    """A field of a record."""

    name: str
    type: "str | list[str | AvroType] | AvroType"
    aliases: list[str] | UnsetType = UNSET


class AvroType(msgspec.Struct, rename={"logical_type": "logicalType"}):
    """A type of Avro that is more than a name."""

    type: "str | list[str | AvroType] | AvroType"
    name: str | UnsetType = UNSET
    namespace: str | UnsetType = UNSET
    aliases: list[str] | UnsetType = UNSET
    fields: list[AvroField] | UnsetType = UNSET
    symbols: list[str] | UnsetType = UNSET
    size: Size | UnsetType = UNSET
    items: "str | list[str | AvroType] | AvroType | UnsetType" = UNSET
    values: "str | list[str | AvroType] | AvroType | UnsetType" = UNSET
    logical_type: str | UnsetType = UNSET
    precision: Size | UnsetType = UNSET
    scale: Size | UnsetType = UNSET


Avro: TypeAlias = Annotated[list[str | list[str | AvroType] | AvroType], msgspec.Meta(min_length=1)]
"""What a document says of Avro: the schema, after those that it refers to."""


class ProtobufField(msgspec.Struct):
    """A field of a message."""

    name: str
    type: str
    label: str
    of: str | UnsetType = UNSET
    oneof: str | UnsetType = UNSET


class Protobuf(msgspec.Struct):
    """What a document says of Protobuf: the message, and all messages and enums in it."""

    message: str
    messages: dict[str, dict[str, ProtobufField]]
    enums: dict[str, list[int]]


def check(value: Any, shape: Any, what: str) -> None:
    """Raise ConfigError, with the place, where something is of another kind than it has to be."""
    try:
        msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        said = str(error)
        raise ConfigError(f"{what}: {said[:1].lower()}{said[1:]}") from error
    except RecursionError:
        raise ConfigError(f"{what}: it is nested too deeply") from None
