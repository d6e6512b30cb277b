"""What a codec is, and which one a content type asks for."""

import codecs
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from things_kit.codecs.models import has_pydantic, is_model, model_decoder, model_decoder_of_message_pack
from things_kit.messaging.errors import DecodeError


class Codec(Protocol):
    """Turns bytes into values of a type, and values into bytes."""

    content_type: str

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        """A function from bytes to `kind`; it raises whatever it likes where they are not that."""

    def encode(self, value: Any) -> bytes:
        """The bytes of a value. Raises TypeError for what cannot be encoded."""


class JSONCodec:
    """JSON, by msgspec; by pydantic what has a type of pydantic's in it."""

    content_type = "application/json"

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        """Decode UTF-8 JSON, with a byte order mark or without, to any type that msgspec or pydantic knows."""
        decode: Callable[[bytes], Any] = (
            model_decoder(kind) if has_pydantic(kind) else msgspec.json.Decoder(kind).decode
        )

        def decode_json(value: bytes) -> Any:
            try:
                return decode(value)
            except Exception:
                if value.startswith(codecs.BOM_UTF8):
                    return decode(value[len(codecs.BOM_UTF8) :])
                if value.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
                    raise ValueError("by its byte order mark it is UTF-16 or UTF-32; JSON is UTF-8") from None
                raise

        return decode_json

    def encode(self, value: Any) -> bytes:
        """Encode to UTF-8 JSON."""
        if is_model(type(value)):
            return bytes(value.model_dump_json(), "utf-8")
        return msgspec.json.encode(value, enc_hook=_dumped_for_json)


class MessagePackCodec:
    """MessagePack, by msgspec; checked by pydantic what has a type of pydantic's in it."""

    content_type = "application/msgpack"

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        """Decode MessagePack to the same types as JSON."""
        if has_pydantic(kind):
            return model_decoder_of_message_pack(kind)
        return msgspec.msgpack.Decoder(kind).decode

    def encode(self, value: Any) -> bytes:
        """Encode to MessagePack."""
        return msgspec.msgpack.encode(value, enc_hook=_dumped)


def _dumped(value: Any) -> Any:
    if not is_model(type(value)):
        raise TypeError(f"a {type(value).__qualname__} cannot be encoded")
    return value.model_dump()


def _dumped_for_json(value: Any) -> Any:
    if not is_model(type(value)):
        raise TypeError(f"a {type(value).__qualname__} cannot be encoded")
    return value.model_dump(mode="json")


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
