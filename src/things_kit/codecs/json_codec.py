"""JSON, by msgspec; by pydantic what has a type of pydantic's in it."""

import codecs
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from things_kit.codecs.known import check_known
from things_kit.codecs.models import dumped_for_json, has_pydantic, model_decoder, model_encoder
from things_kit.messaging.codec import Decode, Encode, bare
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message
from things_kit.messaging.topic import Topic

if TYPE_CHECKING:
    from things_kit.codecs.schemas import Subject


class JSON(msgspec.Struct, frozen=True):
    """JSON in UTF-8; what is read may begin with a byte order mark.

    Attributes:
        registry: Where schemas are registered; each value has the id of its own before it then.
        subject: How their subjects are named: "topic" is the default, "topic-record" for topics of several types.
        references: Types in the payload's whose schemas are registered by themselves, by their subjects: others refer to
            one as `Address.json`.
    """

    registry: Any = None
    subject: Literal["topic", "record", "topic-record"] | None = None
    references: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.registry, self.subject, self.references) != (None, None, None):
            from things_kit.codecs.subjects import check_naming  # noqa: PLC0415 - of those who have one

            check_naming(self.registry, self.subject)
            if self.registry is None:
                raise ConfigError("references= of JSON needs registry=")

    @property
    def content_type(self) -> str:
        """What the header `content-type` says."""
        return "application/json" if self.registry is None else "application/vnd.confluent.json"

    def encoder(self, topic: Topic[Any], /) -> Encode:
        """See `Codec.encoder`."""
        encode = json_encoder(topic.kinds.values())
        if self.registry is not None:
            from things_kit.codecs.json_registered import registered_encoder  # noqa: PLC0415 - as above

            return registered_encoder(self.registry, self.subject, self.references, topic, encode)
        return bare(encode)

    def decoder(self, kind: Any, topic: Topic[Any] | None, /) -> Decode:
        """See `Codec.decoder`: to any type that msgspec or pydantic knows."""
        decode = json_decoder(kind)
        if self.registry is not None:
            from things_kit.codecs.framed import unframed  # noqa: PLC0415 - as above

            return lambda message: decode(message.value[unframed(message.value)[1] :])
        return message_decoder(kind)

    async def prepare(self, topic: Topic[Any], /) -> None:
        """Look up the schemas, or register them, where there is a registry."""
        if self.registry is not None:
            from things_kit.codecs.subjects import prepare_all  # noqa: PLC0415 - as above

            await prepare_all(self.registry, self.subjects(topic))

    def subjects(self, topic: Topic[Any]) -> "dict[str | None, Subject]":
        """What a topic registers, by the header's value."""
        from things_kit.codecs.json_registered import subjects  # noqa: PLC0415 - as above

        return subjects(self.subject, self.references, topic)


def of_values(decode: Decode, read: Callable[[bytes], Any]) -> Decode:
    """A decoder that says what it does with the value alone: where that goes well, `by_content_type` calls nothing else."""
    decode.of_value = read  # type: ignore[attr-defined]
    return decode


def json_encoder(kinds: Any) -> Callable[[Any], bytes]:
    """A function to JSON from payloads of these types. Raises TypeError for a type that cannot be described."""
    kinds = list(kinds)
    for kind in kinds:
        if not has_pydantic(kind):
            check_known(kind)
    if len(kinds) == 1 and has_pydantic(kinds[0]):
        return model_encoder(kinds[0])
    return msgspec.json.Encoder(enc_hook=dumped_for_json).encode


def json_decoder(kind: Any) -> Callable[[bytes], Any]:
    """A function from JSON to a type."""
    decode = _strict_decoder(kind)

    def decode_json(value: bytes) -> Any:
        try:
            return decode(value)
        except Exception:  # noqa: BLE001 - raised again, unless a byte order mark was all that was wrong
            return decode(_without_mark(value))

    return decode_json


def message_decoder(kind: Any) -> Decode:
    """The same from a message: one call less for each."""
    decode = _strict_decoder(kind)

    def decode_message(message: Message) -> Any:
        try:
            return decode(message.value)
        except Exception:  # noqa: BLE001 - raised again, unless a byte order mark was all that was wrong
            return decode(_without_mark(message.value))

    return of_values(decode_message, decode)


def _strict_decoder(kind: Any) -> Callable[[bytes], Any]:
    if has_pydantic(kind):
        return model_decoder(kind)
    check_known(kind)
    return msgspec.json.Decoder(kind).decode


def _without_mark(value: bytes) -> bytes:
    """The value without its byte order mark. Raises what is being handled where it has none, or another one."""
    if value.startswith(codecs.BOM_UTF8):
        return value[len(codecs.BOM_UTF8) :]
    if value.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise ValueError("by its byte order mark it is UTF-16 or UTF-32; JSON is UTF-8") from None
    raise  # noqa: PLE0704 - whoever calls handles it
