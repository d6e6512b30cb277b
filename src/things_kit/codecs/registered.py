"""Which codec a content type asks for."""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from things_kit.messaging.codec import Codec
from things_kit.messaging.errors import ConfigError, DecodeError

GROUP: Final = "things_kit.codecs"
"""The entry points through which an installed package makes its codecs known."""

_OURS: Final = {
    "application/json": ("things_kit.codecs.json_codec", "JSON"),
    "text/json": ("things_kit.codecs.json_codec", "JSON"),
    "application/msgpack": ("things_kit.codecs.message_pack", "MessagePack"),
    "application/x-msgpack": ("things_kit.codecs.message_pack", "MessagePack"),
    "application/vnd.msgpack": ("things_kit.codecs.message_pack", "MessagePack"),
    "application/avro": ("things_kit.codecs.avro", "Avro"),
    "avro/binary": ("things_kit.codecs.avro", "Avro"),
    "application/protobuf": ("things_kit.codecs.protobuf", "Protobuf"),
    "application/x-protobuf": ("things_kit.codecs.protobuf", "Protobuf"),
    "application/cloudevents+json": ("things_kit.codecs.cloud_events", "reader"),
}
_JSON: Final = "application/json"

_known: dict[str, Codec] = {}
_installed: dict[str, Codec] | None = None


def register(codec: Codec) -> None:
    """Decode messages of this codec's content type with it, in every handler. The last one registered counts.

    Raises:
        ConfigError: It is no codec.
    """
    _known[media_type(_checked(codec).content_type)] = codec


def media_type(content_type: str) -> str:
    """A content type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def codec_for(content_type: str | None) -> Codec:
    """The codec of a content type; parameters are ignored, `+json` is JSON, and JSON where there is none.

    Raises:
        DecodeError: No codec is known for it, or its library is not installed.
    """
    name = _JSON if content_type is None else media_type(content_type)
    codec = _known.get(name) or _own(name) or _from_entry_points(name)
    if codec is None and name.endswith("+json"):
        codec = codec_for(_JSON)
    if codec is None:
        known = ", ".join(sorted({*_OURS, *_known}))
        raise DecodeError(f"unknown content type {content_type!r}; known are {known}")
    return codec


def _own(name: str) -> Codec | None:
    home = _OURS.get(name)
    if home is None:
        return None
    module, attribute = home
    try:
        codec: Codec = getattr(import_module(module), attribute)()
    except ConfigError as error:
        raise DecodeError(f"messages of {name} cannot be decoded: {error}") from error
    _known[name] = codec
    return codec


def _from_entry_points(name: str) -> Codec | None:
    global _installed  # noqa: PLW0603 - found once, when an unknown content type asks for it
    if _installed is None:
        codecs = [_loaded(entry) for entry in entry_points(group=GROUP)]
        _installed = {media_type(codec.content_type): codec for codec in codecs}
    return _installed.get(name)


def _loaded(entry: EntryPoint) -> Codec:
    try:
        found = entry.load()
        return _checked(found() if isinstance(found, type) else found)
    except Exception as error:
        raise DecodeError(f"the codec {entry.name!r} of {entry.value} cannot be loaded: {error}") from error


def _checked(codec: object) -> Codec:
    if isinstance(codec, type) or not isinstance(codec, Codec) or not isinstance(codec.content_type, str):
        raise ConfigError(f"a codec has content_type, encoder, decoder and prepare; {codec!r} has not")
    return codec
