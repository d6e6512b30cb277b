"""CloudEvents 1.0 around another codec's data: binary, with attributes in headers, or structured, in one JSON value."""

import base64
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from things_kit.codecs.json_codec import JSON
from things_kit.codecs.registered import codec_for, media_type
from things_kit.messaging.codec import Codec, Decode, Encode
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message
from things_kit.messaging.names import CONTENT_TYPE, in_any_case
from things_kit.messaging.topic import Topic

STRUCTURED: Final = "application/cloudevents+json"
PREFIX: Final = "ce-"
"""How handlers see the names of attributes; drivers spell them as their protocol's binding does."""

Stamp = Callable[[Any, str | None, datetime | None], tuple[bytes, dict[str, str], str, datetime]]


class _Envelope(msgspec.Struct):
    """The members that CloudEvents gives a meaning to beside attributes."""

    data: msgspec.Raw = msgspec.Raw()
    data_base64: str | None = None
    datacontenttype: str | None = None


class CloudEvents(msgspec.Struct, frozen=True):
    """Messages are CloudEvents; id and time are the message's, and both modes are read.

    Attributes:
        source: Where the events come from, a URI reference.
        type: Their type; None: the header's value where the topic has several types, else the class's name.
        mode: "binary": the data is the value, and attributes are headers. "structured": all of it is one JSON value.
        codec: How the data is written.
    """

    source: str
    type: str | None = None
    mode: Literal["binary", "structured"] = "binary"
    codec: Codec = JSON()

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise ConfigError(f"CloudEvents need a source, a URI reference; it is {self.source!r}")
        if self.mode not in {"binary", "structured"}:
            raise ConfigError(f'the mode of CloudEvents is "binary" or "structured"; it is {self.mode!r}')
        if not isinstance(self.codec, Codec) or isinstance(self.codec, type | CloudEvents):
            raise ConfigError(f"the data of CloudEvents needs a codec of its own; it is {self.codec!r}")

    @property
    def content_type(self) -> str:
        """What the header `content-type` says."""
        return STRUCTURED if self.mode == "structured" else self.codec.content_type

    def encoder(self, topic: Topic[Any], /) -> Encode:
        """See `Codec.encoder`: with an id and a time that nobody else knows of."""
        stamp = self.stamper(topic)

        def encode(payload: Any) -> tuple[bytes, Mapping[str, str]]:
            value, headers, _, _ = stamp(payload, None, None)
            return value, headers

        return encode

    def stamper(self, topic: Topic[Any], /) -> Stamp:
        """See `Stamping.stamper`."""
        encode, source = self.codec.encoder(topic), self.source
        types = {} if topic.by is None else {kind: value for value, kind in topic.kinds.items()}
        write = self._structured if self.mode == "structured" else _binary

        def stamp(
            payload: Any, chosen: str | None, time: datetime | None
        ) -> tuple[bytes, dict[str, str], str, datetime]:
            data, more = encode(payload)
            chosen, time = chosen or str(uuid.uuid4()), time or datetime.now(UTC)
            kind = self.type or types.get(type(payload)) or type(payload).__name__
            attributes = {
                "specversion": "1.0", "id": chosen, "source": source, "type": kind,
                "time": time.isoformat().replace("+00:00", "Z"),
            }  # fmt: skip
            value, headers = write(data, attributes)
            return value, {**more, **headers}, chosen, time

        return stamp

    def _structured(self, data: bytes, attributes: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        content_type = self.codec.content_type
        envelope: dict[str, Any] = {**attributes, "datacontenttype": content_type}
        if _is_json(content_type):
            envelope["data"] = msgspec.Raw(data)
        else:
            envelope["data_base64"] = base64.b64encode(data).decode()
        return msgspec.json.encode(envelope), {}

    def decoder(self, kind: Any, topic: Topic[Any] | None, /) -> Decode:
        """See `Codec.decoder`."""
        own = self.codec.decoder(kind, topic)
        ours = media_type(self.codec.content_type)

        def decode(message: Message) -> Any:
            if not is_structured(message):
                return own(message)
            data = unwrapped_event(message)
            content_type = in_any_case(data.headers, CONTENT_TYPE)
            if content_type is None or media_type(content_type) == ours:
                return own(data)
            return codec_for(content_type).decoder(kind, topic)(data)

        return decode

    async def prepare(self, topic: Topic[Any], /) -> None:
        """Get what the data's codec needs."""
        await self.codec.prepare(topic)

    def opened(self, message: Message, topic: Topic[Any]) -> Message:
        """The message with the attributes of its event as headers, and the header that names its type."""
        headers = dict(message.headers)
        if is_structured(message):
            for name, text in attributes_of(message).items():
                headers.setdefault(PREFIX + name, text)
        if topic.by is not None and f"{PREFIX}type" in headers:
            headers.setdefault(topic.by, headers[f"{PREFIX}type"])
        return message if len(headers) == len(message.headers) else message.replace(headers=headers)


def reader() -> CloudEvents:
    """What decodes structured events of topics that are known by name alone."""
    return CloudEvents(source="unknown", mode="structured")


def is_structured(message: Message) -> bool:
    """Whether the whole event is in the value."""
    content_type = in_any_case(message.headers, CONTENT_TYPE)
    return content_type is not None and media_type(content_type) == STRUCTURED


def attributes_of(message: Message) -> dict[str, str]:
    """The attributes of a structured event; none of what is no event, which decoding says better."""
    try:
        members = msgspec.json.decode(message.value, type=dict[str, msgspec.Raw])
        plain = {
            name: msgspec.json.decode(raw)
            for name, raw in members.items()
            if name not in {"data", "data_base64"}
        }
    except msgspec.DecodeError:
        return {}
    return {name: _text(value) for name, value in plain.items() if isinstance(value, str | int)}


def unwrapped_event(message: Message) -> Message:
    """The data of a structured event as a message of its own. Raises what decoding raises."""
    event = msgspec.json.decode(message.value, type=_Envelope)
    content_type = event.datacontenttype
    if event.data_base64 is not None:
        value = base64.b64decode(event.data_base64, validate=True)
    else:
        value = bytes(event.data) or b"null"
        if content_type is not None and not _is_json(content_type) and value[:1] == b'"':
            value = msgspec.json.decode(value, type=str).encode()
    return message.replace(value=value, headers={} if content_type is None else {CONTENT_TYPE: content_type})


def _binary(data: bytes, attributes: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    return data, {PREFIX + name: text for name, text in attributes.items()}


def _is_json(content_type: str) -> bool:
    name = media_type(content_type)
    return name.endswith(("/json", "+json"))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
