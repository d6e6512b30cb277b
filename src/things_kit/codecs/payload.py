"""From a message to the payload that a handler asked for."""

from collections.abc import Callable
from typing import Any

from things_kit.codecs.codec import codec_for
from things_kit.codecs.known import check_known
from things_kit.codecs.models import has_pydantic
from things_kit.messaging.errors import ConfigError, DecodeError
from things_kit.messaging.message import Message
from things_kit.messaging.names import CONTENT_TYPE, in_any_case


def payload_decoder(kind: Any) -> Callable[[Message], Any]:
    """A function from a message to its value as `kind`; it raises DecodeError where the value is not that.

    `bytes` is the value itself and `str` its UTF-8 text; every other type is decoded by the header `content-type`,
    in any case.

    Raises:
        ConfigError: No value can be decoded to this type.
    """
    if kind is bytes:
        return lambda message: message.value
    if kind is str:
        return _text
    try:
        if not has_pydantic(kind):
            check_known(kind)
        decoders: dict[str | None, Callable[[bytes], Any]] = {None: codec_for(None).decoder(kind)}
    except TypeError as error:
        raise ConfigError(f"a handler cannot take {kind!r}: {error}") from error

    def decode(message: Message) -> Any:
        content_type = in_any_case(message.headers, CONTENT_TYPE)
        decoder = decoders.get(content_type)
        if decoder is None:
            decoder = codec_for(content_type).decoder(kind)
            if len(decoders) < 100:  # a sender that invents content types must not fill the memory
                decoders[content_type] = decoder
        try:
            return decoder(message.value)
        except Exception as error:
            raise DecodeError(f"the value is not {_name(kind)}: {error}") from error

    return decode


def _text(message: Message) -> str:
    try:
        return message.value.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"the value is not UTF-8 text: {error}") from error


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
