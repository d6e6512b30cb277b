"""Protobuf, by the classes that protoc generates."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

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
    """Protobuf in binary. Payload types are generated classes; plain values have the fields' names."""

    @property
    def content_type(self) -> str:
        """What the header `content-type` says."""
        return "application/protobuf"

    def encoder(self, topic: Topic[Any], /) -> Encode:
        """See `Codec.encoder`."""
        if topic.version is not None:
            raise TypeError("Protobuf resolves versions itself, by the numbers of fields")
        for kind in topic.kinds.values():
            check_generated(kind)
        return lambda payload: (payload.SerializeToString(), _NOTHING)

    def decoder(self, kind: Any, topic: Topic[Any] | None, /) -> Decode:
        """See `Codec.decoder`."""
        if kind is not Any:
            check_generated(kind)
            parse = kind.FromString
            return lambda message: parse(message.value)
        if topic is None:
            raise TypeError("plain values of Protobuf need a topic's type")
        kinds, by = topic.kinds, topic.by

        def decode_plain(message: Message) -> Any:
            return plain(kinds[None if by is None else message.headers[by]].FromString(message.value))

        return decode_plain

    async def prepare(self, topic: Topic[Any], /) -> None:
        """Nothing is needed."""


def check_generated(kind: Any) -> None:
    """Raise TypeError for what is no generated class."""
    if not isinstance(kind, type) or not issubclass(kind, Generated) or kind is Generated:
        raise TypeError("it is no class that protoc generates")


def plain(message: Any) -> dict[str, Any]:
    """The plain values of a generated message."""
    values: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return values
