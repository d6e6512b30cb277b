"""What a codec is, and which one a content type asks for."""

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from things_kit.messaging.errors import DecodeError


class Codec(Protocol):
    """Turns bytes into values of a type, and values into bytes."""

    content_type: str

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        """A function from bytes to `kind`; it raises whatever it likes where they are not that."""

    def encode(self, value: Any) -> bytes:
        """The bytes of a value. Raises TypeError for what cannot be encoded."""


class JSONCodec:
    """JSON, by msgspec; pydantic models parse and print themselves."""

    content_type = "application/json"

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        """Decode UTF-8 JSON to a Struct, dataclass, TypedDict, pydantic model or built-in type."""
        if is_pydantic(kind):
            decode: Callable[[bytes], Any] = kind.model_validate_json
            return decode
        return msgspec.json.Decoder(kind).decode

    def encode(self, value: Any) -> bytes:
        """Encode to UTF-8 JSON."""
        if is_pydantic(type(value)):
            return bytes(value.model_dump_json(), "utf-8")
        return msgspec.json.encode(value)


class MessagePackCodec:
    """MessagePack, by msgspec."""

    content_type = "application/msgpack"

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        """Decode MessagePack to the same types as JSON."""
        if is_pydantic(kind):
            return lambda value: kind.model_validate(msgspec.msgpack.decode(value))
        return msgspec.msgpack.Decoder(kind).decode

    def encode(self, value: Any) -> bytes:
        """Encode to MessagePack."""
        return msgspec.msgpack.encode(value.model_dump() if is_pydantic(type(value)) else value)


_JSON: Final = JSONCodec()
_MESSAGE_PACK: Final = MessagePackCodec()
_CODECS: Final[dict[str, Codec]] = {
    "application/json": _JSON,
    "text/json": _JSON,
    "application/msgpack": _MESSAGE_PACK,
    "application/x-msgpack": _MESSAGE_PACK,
    "application/vnd.msgpack": _MESSAGE_PACK,
}


def codec_for(content_type: str | None) -> Codec:
    """The codec of a content type; parameters are ignored, JSON where there is none.

    Raises:
        DecodeError: No codec is known for it.
    """
    if content_type is None:
        return _JSON
    name = content_type.partition(";")[0].strip().lower()
    codec = _CODECS.get(name) or (_JSON if name.endswith("+json") else None)
    if codec is None:
        raise DecodeError(f"unknown content type {content_type!r}; known are {', '.join(sorted(_CODECS))}")
    return codec


def is_pydantic(kind: Any) -> bool:
    """Whether a type is a pydantic model, asked without importing pydantic."""
    return isinstance(kind, type) and hasattr(kind, "model_validate_json")
