"""From a message of a topic whose contract is known to the payload that a handler asked for."""

from collections.abc import Callable, Mapping
from typing import Any, Final, get_args, get_origin

import msgspec

from things_kit.codecs.models import converter
from things_kit.codecs.payload import Payload, by_content_type, name_of, raw_decoder
from things_kit.codecs.registered import codec_for
from things_kit.messaging.errors import ConfigError, DecodeError, UnroutableError
from things_kit.messaging.kinds import is_raw, takes, unwrapped
from things_kit.messaging.message import Message
from things_kit.messaging.topic import Topic
from things_kit.messaging.versions import upcasted, written_version

_PLAIN: Final = {dict, Mapping}


def contract_decoder(topic: Topic[Any], wanted: Any, whose: str) -> Payload:
    """A function from the topic's messages to what a handler takes, `wanted`.

    That is the topic's type or a wider one; `bytes` and `str` are the value itself, and `dict` its plain values.

    Raises:
        ConfigError: The handler takes something else.
    """
    if (raw := raw_decoder(wanted)) is not None:
        return raw
    kinds = topic.kinds
    if all(takes(wanted, kind) for kind in kinds.values()):
        return _by_type(topic, {value: typed_decoder(topic, value) for value in kinds})
    if (get_origin(unwrapped(wanted)) or unwrapped(wanted)) in _PLAIN:
        return _by_type(topic, {value: _plain_decoder(topic, value, wanted) for value in kinds})
    carried = " | ".join(map(name_of, kinds.values()))
    raise ConfigError(f"{whose} takes {name_of(wanted)}, but the topic {topic.name!r} carries {carried}")


def typed_decoder(topic: Topic[Any], value: str | None) -> Payload:
    """A function to the type of one value of the topic's header; None where the topic has one type."""
    kind = topic.kinds[value]
    if is_raw({None: kind}):
        return raw_decoder(kind) or (lambda message: message.value)
    decode = by_content_type(lambda codec: codec.decoder(kind, topic), _codec(topic), name_of(kind))
    if topic.version is None:
        return decode
    plain = by_content_type(lambda codec: codec.decoder(Any, topic), _codec(topic), "plain values")
    return _versioned(topic, value, decode, plain, _converted(kind))


def _plain_decoder(topic: Topic[Any], value: str | None, wanted: Any) -> Payload:
    decode = by_content_type(lambda codec: codec.decoder(Any, topic), _codec(topic), "plain values")
    convert = _converted(wanted) if get_args(unwrapped(wanted)) else _as_dict

    def decode_plain(message: Message) -> Any:
        return convert(decode(message))

    if topic.version is None:
        return decode_plain
    return _versioned(topic, value, decode_plain, decode, convert)


def _versioned(
    topic: Topic[Any], value: str | None, decode: Payload, plain: Payload, convert: Callable[[Any], Any]
) -> Payload:
    current, newer, upcasters = topic.version or 1, topic.accept_newer, topic.upcasters.get(value, {})

    def decode_version(message: Message) -> Any:
        version = written_version(message, current, accept_newer=newer)
        if version >= current or not upcasters:
            return decode(message)
        return convert(upcasted(plain(message), version, upcasters))

    return decode_version


def _by_type(topic: Topic[Any], decoders: Mapping[str | None, Payload]) -> Payload:
    by = topic.by
    if by is None:
        return decoders[None]
    name = topic.name

    def decode(message: Message) -> Any:
        value = message.headers.get(by)
        decoder = decoders.get(value) if value is not None else None
        if decoder is None:
            raise UnroutableError(
                f"the topic {name!r} has no type {value!r}"
                if value is not None
                else f"the message has no header {by!r} that names its type"
            )
        return decoder(message)

    return decode


def _converted(kind: Any) -> Callable[[Any], Any]:
    convert = converter(kind)

    def converted(plain: Any) -> Any:
        try:
            return convert(plain)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise DecodeError(f"the value is not {name_of(kind)}: {error}") from error

    return converted


def _as_dict(plain: Any) -> Any:
    if not isinstance(plain, dict):
        raise DecodeError(f"the value is no object but {type(plain).__name__}")
    return plain


def _codec(topic: Topic[Any]) -> Any:
    return topic.codec or codec_for(None)
