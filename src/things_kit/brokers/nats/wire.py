"""Messages as NATS has them, and back.

The value is the payload. A header is native where NATS can carry it unchanged: a name of letters, digits and the signs
of a token, and printable ASCII for its value. Of our own there are:

    Nats-Msg-Id  what a stream knows the publish by, of which it keeps one within its duplicate window; with
                 `?deduplicate=id` the message's id
    tk-id        the message's id, where that is printable ASCII and not the Nats-Msg-Id
    tk-time      its time, in ISO 8601 with microseconds; the server's own is when the stream got it
    tk-key       its key, where that is printable ASCII
    tk-packed    Base64 of JSON: an id, a key (in Base64 again) and headers that cannot be native

Headers that mean something to the server (Nats-...) or to its clients (Status) are packed as well, so that no message
makes the server do anything. With `?deduplicate=id` a dead letter and a replayed message still have a Nats-Msg-Id of
their own, as they have the id of a message that the stream may have seen a moment ago.

Messages of others: the last of a repeated header counts; the id is the Nats-Msg-Id, or else STREAM-SEQUENCE; without a
key there is none.
"""

import binascii
import hashlib
import re
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import msgspec
from nats.aio.msg import Msg

from things_kit.engine.dead_letter import is_dead_letter
from things_kit.messaging.message import RESERVED_PREFIX, Message

PUBLICATION: Final = "Nats-Msg-Id"
ID: Final = "tk-id"
TIME: Final = "tk-time"
KEY: Final = "tk-key"
PACKED: Final = "tk-packed"

FRAME: Final = len("NATS/1.0\r\n\r\n")
LINE: Final = len(": \r\n")

LONG: Final = 512
"""Letters of an id from which on the stream knows it by a digest, where it is to know it by its id."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_MEANINGFUL: Final = ("nats-", "status", "description")

NOT_OURS: Final = (ValueError, msgspec.MsgspecError, binascii.Error)
"""How headers of our names fail that somebody else wrote."""


class Packed(msgspec.Struct, omit_defaults=True):
    """What is not native."""

    id: str | None = None
    key: bytes | None = None
    headers: dict[str, str] = {}


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Packed).decode


@lru_cache(2048)
def _native_name(name: str) -> bool:
    return _TOKEN.fullmatch(name) is not None and not name.lower().startswith(_MEANINGFUL)


def _native_text(text: str) -> bool:
    """Whether it arrives as it is: neither trimmed, nor decoded, nor read as more lines."""
    return text.isascii() and text.isprintable() and text[:1] != " " and text[-1:] != " " and "=?" not in text


def raw_headers(
    message: Message, times: dict[datetime | None, str], publication: str | None
) -> dict[str, str]:
    """All headers of a message; `times` is a note of those of its batch, as most share one.

    Without a `publication` the stream is to know it by its id.
    """
    identity, key, moment = message.id or "", message.key, message.timestamp
    time = times.get(moment)
    if time is None:
        time = times[moment] = (moment or EPOCH).isoformat(timespec="microseconds")
    raw = {TIME: time}
    packed: Packed | None = None
    for name, text in message.headers.items():
        if _native_name(name) and _native_text(text):
            raw[name] = text
        else:
            packed = packed or Packed()
            packed.headers[name] = text
    if key is not None:
        text = key.decode("latin-1")
        if text and _native_text(text):
            raw[KEY] = text
        else:
            packed = packed or Packed()
            packed.key = key
    raw[PUBLICATION] = known = publication or _known_by_id(message, identity, time)
    if known == identity:
        pass
    elif identity and _native_text(identity):
        raw[ID] = identity
    else:
        packed = packed or Packed()
        packed.id = identity
    if packed is not None:
        raw[PACKED] = b64encode(_encode(packed)).decode()
    return raw


def _known_by_id(message: Message, identity: str, time: str) -> str:
    """What the stream knows it by, by its id. A dead letter must not look like the message that it was."""
    if not identity or len(identity) > LONG or not _native_text(identity):
        identity = f"tk-sha256:{hashlib.sha256(identity.encode()).hexdigest()}"
    return f"{identity}~{time}" if is_dead_letter(message) else identity


def size_of(headers: dict[str, str], value: bytes) -> int:
    """The bytes of a message, as the server counts them. All our headers are ASCII."""
    return FRAME + sum(map(len, headers)) + sum(map(len, headers.values())) + LINE * len(headers) + len(value)


class Coordinates(msgspec.Struct, frozen=True):
    """What a delivery's reply subject says."""

    stream: str
    consumer: str
    delivered: int
    seq: int
    stored: int


def coordinates(reply: str) -> Coordinates:
    """Of `$JS.ACK.` and nine tokens in all, or more from domains: then two come before the stream."""
    tokens = reply.split(".")
    stream, consumer, delivered, seq, _, stored = tokens[2:8] if len(tokens) == 9 else tokens[4:10]
    return Coordinates(stream, consumer, int(delivered), int(seq), int(stored))


def unpack(msg: Msg, at: Coordinates, attempt: int, times: dict[str, datetime]) -> Message:
    """The message of a delivery. Runs once for each, so it does nothing twice."""
    raw: dict[str, Any] = msg.headers or {}
    try:
        return _ours(msg, raw, at, attempt, times)
    except NOT_OURS:
        plain = {name: text for name, text in raw.items() if not name.startswith(RESERVED_PREFIX)}
        return _ours(msg, plain, at, attempt, times)


def _ours(
    msg: Msg, raw: dict[str, Any], at: Coordinates, attempt: int, times: dict[str, datetime]
) -> Message:
    headers: dict[str, str] = {}
    identity = publication = key = packed = moment = None
    for name, text in raw.items():
        if name == TIME:
            moment = times.get(text) or _time(text, times)
        elif name == ID:
            identity = text
        elif name == PUBLICATION:
            publication = text
        elif name == KEY:
            key = text.encode("latin-1")
        elif name == PACKED:
            packed = _decode(b64decode(text, validate=True))
        elif name[:3] != RESERVED_PREFIX:
            headers[name] = text
    if packed is not None:
        headers.update(packed.headers)
        identity = identity if packed.id is None else packed.id
        key = key if packed.key is None else packed.key
    if moment is None:
        moment = EPOCH + timedelta(microseconds=at.stored // 1000)
    if identity is None:
        identity = publication if publication is not None else f"{at.stream}-{at.seq}"
    return Message(msg.subject, msg.data, key, headers, None, at.seq, moment, identity, attempt)


def _time(text: str, times: dict[str, datetime]) -> datetime:
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError("a time without a zone")
    if len(times) > 1000:
        times.clear()
    times[text] = when = when.astimezone(UTC)
    return when
