r"""Messages as Pub/Sub has them, and back.

The value is the data, headers are attributes, and the key is the ordering key. Of our own there are attributes, which
handlers never see:

    tk-id        the message's id
    tk-time      its time, in ISO 8601 with microseconds: the service's own is the time of publishing
    tk-key       the key as text, where it is not the ordering key
    tk-packed-N  pieces of one JSON object with what does not fit otherwise (cloud.google.com/pubsub/quotas): headers
                 with an empty name, one beyond 256 bytes or that begins with `goog`, or a text beyond 1024 bytes; those
                 beyond 90; keys that are empty, no UTF-8, or longer than 1024 bytes, in base64; ids beyond 1024 bytes

A key that is packed has its hash as ordering key, with `tk~` before it.

Messages of foreign publishers: the ordering key is the key, all attributes are headers but those with our names, the
time is the service's, and the id is made of topic and message id.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

import msgspec
from google.pubsub_v1 import types

from things_kit.messaging.errors import MessageTooLarge
from things_kit.messaging.message import RESERVED_PREFIX, Message

Proto: TypeAlias = Any
"""A message of protocol buffers itself: Google's wrapper around it costs microseconds for each field."""

Order: TypeAlias = Literal["key", "topic", "none"]

ID: Final = "tk-id"
TIME: Final = "tk-time"
KEY: Final = "tk-key"
PACKED: Final = "tk-packed-"
FIRST_PIECE: Final = f"{PACKED}0"

HASHED: Final = "tk~"
"""How ordering keys begin that are not the message's key."""

WHOLE_TOPIC: Final = f"{HASHED}topic"

MOST: Final = 90
"""Headers that become attributes; a message has up to 100, and some are ours."""

NAME_BYTES: Final = 256
TEXT_BYTES: Final = 1024
SHORT_NAME: Final = NAME_BYTES // 4
SHORT_TEXT: Final = TEXT_BYTES // 4
"""Characters that fit in any case: one has up to four bytes."""

PIECES: Final = 60

PUBSUB_MESSAGE: Final[Any] = types.PubsubMessage.pb()


class Packed(msgspec.Struct, omit_defaults=True):
    """What does not fit into attributes and ordering key."""

    id: str | None = None
    key: bytes | None = None
    headers: dict[str, str] = {}


class Packer:
    """Packs the messages of one batch: most share one time, which `publish` gave them."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._last: datetime | None = None
        self._stamp = ""

    def pack(self, message: Message, make: Callable[..., Proto] = PUBSUB_MESSAGE) -> Proto:
        """Runs once for each message. `make` is what takes the fields.

        Raises:
            MessageTooLarge: There is more that does not fit than all attributes together take.
        """
        moment, key, headers = message.timestamp, message.key, message.headers
        if moment is not self._last and moment is not None:
            self._last, self._stamp = moment, moment.isoformat(timespec="microseconds")
        identity: str = message.id  # type: ignore[assignment] # the engine gives one
        attributes = {**headers, ID: identity, TIME: self._stamp}
        ordering_key = ""
        if self._order == "key" and key is not None and len(key) <= TEXT_BYTES:
            ordering_key = _text(key) or ""
        if (
            (key is not None and not ordering_key)
            or self._order == "topic"
            or len(identity) > SHORT_TEXT
            or not _fits(headers)
        ):
            ordering_key = self._pack_rest(message, attributes, ordering_key)
        return make(data=message.value, attributes=attributes, ordering_key=ordering_key)

    def _pack_rest(self, message: Message, attributes: dict[str, str], ordering_key: str) -> str:
        """Move what does not fit to where it does; returns the ordering key."""
        rest, key = Packed(), message.key
        if self._order == "topic":
            ordering_key = WHOLE_TOPIC
        if key is not None and ordering_key in {"", WHOLE_TOPIC}:
            text = _text(key) if self._order != "key" and len(key) <= TEXT_BYTES else None
            if text is not None:
                attributes[KEY] = text
            else:
                rest.key = key
                if self._order == "key":
                    ordering_key = HASHED + hashlib.sha256(key).hexdigest()
        if not _fits_one(ID, attributes[ID]):
            rest.id = attributes.pop(ID)
        for number, (name, text) in enumerate(message.headers.items()):
            if number >= MOST or not _fits_one(name, text):
                rest.headers[name] = attributes.pop(name)
        if rest != Packed():
            attributes |= _pieces(rest, message.topic)
        return ordering_key


def _pieces(rest: Packed, topic: str) -> dict[str, str]:
    whole = json.dumps(msgspec.to_builtins(rest))  # in ASCII, so that it can be cut anywhere
    pieces = [whole[start : start + TEXT_BYTES] for start in range(0, len(whole), TEXT_BYTES)]
    if len(pieces) > PIECES:
        raise MessageTooLarge(
            f"the headers of a message for {topic!r} are too large: Pub/Sub takes {TEXT_BYTES} bytes for each, "
            f"and what is beyond that has {len(whole)} bytes together, where {TEXT_BYTES * PIECES} fit"
        )
    return {f"{PACKED}{number}": piece for number, piece in enumerate(pieces)}


def _text(key: bytes) -> str | None:
    """A key as an ordering key can be; None if it must be packed."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return None
    return None if not text or text.startswith(HASHED) else text


def _fits(headers: Mapping[str, str]) -> bool:
    """Every published message pays for this; what is not plainly right is looked at again."""
    if len(headers) > MOST:
        return False
    for name, text in headers.items():
        if (len(name) > SHORT_NAME or len(text) > SHORT_TEXT or name[:1] in {"", "g", "G"}) and not _fits_one(
            name, text
        ):
            return False
    return True


def _fits_one(name: str, text: str) -> bool:
    return (
        0 < len(name.encode()) <= NAME_BYTES
        and name[:4].lower() != "goog"
        and len(text.encode()) <= TEXT_BYTES
    )


class Unpacker:
    """Makes messages of what a subscription brings. Runs once for each message, so it does nothing twice."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._stamps: dict[str, datetime] = {}

    def unpack(self, message: Proto, attempt: int) -> Message:
        """`attempt` is the service's count of deliveries, 0 where it does not count."""
        attributes = message.attributes
        headers = {name: attributes[name] for name in attributes}  # three times as fast as dict()
        ordering_key: str = message.ordering_key
        identity = headers.pop(ID, None)
        if identity is None or KEY in headers or FIRST_PIECE in headers or ordering_key == WHOLE_TOPIC:
            return self._unpack_rest(message, headers, identity, attempt)
        when = self._stamps.get(stamp := headers.pop(TIME, ""))
        if when is None:
            when = self._time(stamp, message)
        key = ordering_key.encode() if ordering_key else None
        return Message(self._topic, message.data, key, headers, None, None, when, identity, attempt or 1)

    def _unpack_rest(
        self, message: Proto, headers: dict[str, str], identity: str | None, attempt: int
    ) -> Message:
        """What is packed, or from somebody else."""
        ordering_key: str = message.ordering_key
        key = ordering_key.encode() if ordering_key not in {"", WHOLE_TOPIC} else None
        if KEY in headers:
            key = headers[KEY].encode()
        rest = _joined(headers)
        if rest is not None:
            identity = rest.id if rest.id is not None else identity
            key = rest.key if rest.key is not None else key
        when = self._time(headers.get(TIME, ""), message)
        headers = {name: text for name, text in headers.items() if not name.startswith(RESERVED_PREFIX)}
        if rest is not None:
            headers |= rest.headers
        if identity is None:
            identity = f"{self._topic}-{message.message_id}"
        return Message(self._topic, message.data, key, headers, None, None, when, identity, attempt or 1)

    def _time(self, stamp: str, message: Proto) -> datetime:
        try:
            when = datetime.fromisoformat(stamp)
            when = when.astimezone(UTC) if when.tzinfo is not UTC else when
        except (ValueError, OverflowError):  # not ours
            return message.publish_time.ToDatetime(tzinfo=UTC)  # type: ignore[no-any-return]
        if len(self._stamps) > 1000:
            self._stamps.clear()
        self._stamps[stamp] = when
        return when


def _joined(headers: Mapping[str, str]) -> Packed | None:
    """What is in the pieces; None if there are none, or somebody else's."""
    pieces: list[str] = []
    while (piece := headers.get(f"{PACKED}{len(pieces)}")) is not None:
        pieces.append(piece)
    try:
        return msgspec.json.decode("".join(pieces), type=Packed) if pieces else None
    except msgspec.MsgspecError:
        return None
