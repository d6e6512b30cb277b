"""The contract of a codec: bytes to payloads and back."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from things_kit.messaging.message import Message
    from things_kit.messaging.topic import Topic

Encode: TypeAlias = Callable[[Any], tuple[bytes, Mapping[str, str]]]
"""A payload's bytes, and headers that say more of them than the content type does."""

Decode: TypeAlias = "Callable[[Message], Any]"
"""The payload in a message; raises whatever it likes where there is none of that type, which is a `DecodeError`."""

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})

DEFAULT: Final = "things_kit.codecs.json_codec"
"""Where the codec of topics that name none is. By name, as this room imports none of the others."""


@runtime_checkable
class Codec(Protocol):
    """Turns payloads of a topic into bytes, and messages into payloads."""

    @property
    def content_type(self) -> str:
        """What the header `content-type` of its messages says."""

    def encoder(self, topic: "Topic[Any]", /) -> Encode:
        """A function from a payload of this topic to its bytes. Raises TypeError where there can be none."""

    def decoder(self, kind: Any, topic: "Topic[Any] | None", /) -> Decode:
        """A function from a message to a payload of this type. Raises TypeError where there can be none.

        It may raise `Unprepared`. For a topic that is known only by its name, `topic` is None, and nothing is prepared.
        `kind` is `Any` for plain values, as they are on the wire.
        """

    async def prepare(self, topic: "Topic[Any]", /) -> None:
        """Get whatever encoding will need from elsewhere; awaited before the first message, and cheap when repeated."""


@runtime_checkable
class Stamping(Protocol):
    """A codec whose bytes or headers say the message's id and time as well."""

    def stamper(
        self, topic: "Topic[Any]", /
    ) -> "Callable[[Any, str | None, datetime | None], tuple[bytes, Mapping[str, str], str, datetime]]":
        """Like `encoder`, but of a payload, id and time, which it chooses where they are None, and returns."""


@runtime_checkable
class Opening(Protocol):
    """A codec whose values have what handlers look for in headers."""

    def opened(self, message: "Message", topic: "Topic[Any]", /) -> "Message":
        """The message with these headers, its value as it was. It never raises: decoding says what is wrong."""


class Unprepared(Exception):
    """A decoder needs something from elsewhere first, such as a schema.

    The engine awaits `awaitable` beside its workers, and then decodes again; no attempt is counted. A `DecodeError` of it
    is the message's, anything else counts as an outage: it is asked for again.
    """

    def __init__(self, awaitable: Awaitable[object]) -> None:
        super().__init__("what decodes this message has to be fetched first")
        self.awaitable = awaitable


def bare(encode: Callable[[Any], bytes]) -> Encode:
    """An encoder that writes no headers, and says so: `bytes_of` spares many messages the way around."""

    def encoder(payload: Any) -> tuple[bytes, Mapping[str, str]]:
        return encode(payload), _NOTHING

    encoder.bytes_of = encode  # type: ignore[attr-defined]
    return encoder


def default_codec() -> Codec:
    """JSON."""
    codec: Codec = import_module(DEFAULT).JSON()
    return codec
