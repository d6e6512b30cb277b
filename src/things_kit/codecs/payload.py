"""From a message to the payload that a handler asked for."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias, get_args

from things_kit.codecs.registered import codec_for, media_type
from things_kit.messaging.codec import Codec, Decode, Unprepared
from things_kit.messaging.errors import ConfigError, DecodeError, UnroutableError
from things_kit.messaging.message import Message
from things_kit.messaging.names import CONTENT_TYPE, in_any_case

MOST: Final = 100
"""The content types that are remembered: a sender that invents them must not fill the memory."""

LONGEST: Final = 500
"""Characters of a reason: some libraries say the whole schema, which anybody may have written."""

_OURS: Final = (Unprepared, DecodeError, UnroutableError)

Payload: TypeAlias = Callable[[Message], Any]


def payload_decoder(kind: Any) -> Payload:
    """A function from a message to its value as `kind`; it raises DecodeError where the value is not that.

    `bytes` is the value itself and `str` its UTF-8 text; every other type is decoded by the header `content-type`,
    in any case.

    Raises:
        ConfigError: No value can be decoded to this type.
    """
    if (raw := raw_decoder(kind)) is not None:
        return raw
    if any(isinstance(each, type) and issubclass(each, Message) for each in (kind, *get_args(kind))):
        raise ConfigError(
            f"a handler cannot take {kind!r}: it is handed a Message itself, or what a value holds"
        )
    own = codec_for("application/protobuf" if hasattr(kind, "SerializeToString") else None)
    try:
        own.decoder(kind, None)
    except TypeError as error:
        raise ConfigError(f"a handler cannot take {kind!r}: {error}") from error
    return by_content_type(lambda codec: codec.decoder(kind, None), own, name_of(kind))


def raw_decoder(kind: Any) -> Payload | None:
    """For `bytes` and `str`, which are the value itself; None for all others."""
    if kind is bytes:
        return lambda message: message.value
    return _text if kind is str else None


def by_content_type(make: Callable[[Codec], Decode], own: Codec, name: str) -> Payload:
    """Decodes by the codec of the content type; by `own` what is of its type, or has none."""
    decoders: dict[str | None, Decode] = {None: make(own), own.content_type: make(own)}
    ours = media_type(own.content_type)

    def decode(message: Message) -> Any:
        headers = message.headers
        content_type = headers.get(CONTENT_TYPE)
        if content_type is None:
            content_type = in_any_case(headers, CONTENT_TYPE)
        try:
            decoder = decoders.get(content_type)
            if decoder is None:
                mine = content_type is not None and media_type(content_type) == ours
                decoder = make(own if mine else codec_for(content_type))
                if len(decoders) < MOST:
                    decoders[content_type] = decoder
            return decoder(message)
        except _OURS:
            raise
        except Exception as error:
            raise DecodeError(f"the value is not {name}: {_why(error)}") from error

    read = getattr(decoders[None], "of_value", None)
    return decode if read is None else _at_once(read, own.content_type, decode)


def _at_once(read: Callable[[bytes], Any], content_type: str, decode: Payload) -> Payload:
    """Reads what is as it mostly is with one call; everything else is for `decode`. It says so, as `usual` finds out."""

    def decode_at_once(message: Message) -> Any:
        if message.headers.get(CONTENT_TYPE) == content_type:
            try:
                return read(message.value)
            except Exception:  # noqa: BLE001, S110 - `decode` says what is wrong, if anything is
                pass
        return decode(message)

    decode_at_once.usual = content_type, read  # type: ignore[attr-defined]
    return decode_at_once


def usual(decode: Payload) -> tuple[str, Callable[[bytes], Any]] | None:
    """The content type that messages mostly have, and what reads their values; all else, also what that raises, is for `decode`."""
    found: tuple[str, Callable[[bytes], Any]] | None = getattr(decode, "usual", None)
    return found


def _why(error: Exception) -> str:
    """In words, of which some errors have none."""
    if isinstance(error, EOFError):
        return "it ends too early"
    text = str(error) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _text(message: Message) -> str:
    try:
        return message.value.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"the value is not UTF-8 text: {error}") from error


def name_of(kind: Any) -> str:
    """What to call a type in a sentence."""
    return kind.__name__ if isinstance(kind, type) else str(kind)
