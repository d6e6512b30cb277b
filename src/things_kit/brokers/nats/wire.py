"""Messages as NATS has them, and back.

The value is the payload, and headers are the fields of the engine's `envelope`: native where NATS can carry them
unchanged, which is a name of letters, digits and the signs of a token, and printable ASCII for its value. Beside them
there is `Nats-Msg-Id`: what a stream knows the publish by, of which it keeps one within its duplicate window; with
`?deduplicate=id` the message's id, unless that is no header. Headers that mean something to the server (Nats-...) or to
its clients (Status) are packed as well, so that no message makes the server do anything.

Messages of others: the last of a repeated header counts; the id is the Nats-Msg-Id, or else STREAM-SEQUENCE; without a
key there is none.
"""

import hashlib
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec
from nats.aio.msg import Msg

from things_kit.engine.dead_letter import is_dead_letter
from things_kit.engine.envelope import EPOCH, Envelope
from things_kit.messaging.message import Message

PUBLICATION: Final = "Nats-Msg-Id"

AT: Final = "Nats-Schedule"
TARGET: Final = "Nats-Schedule-Target"
NAME: Final = "tk-schedule"
"""When a stream is to publish what it keeps, to which subject, and the schedule_id that it was given."""

SCHEDULER: Final = "Nats-Scheduler"
FIRED: Final = (SCHEDULER, "Nats-Schedule-Next", NAME)
"""What is in the headers of a message that a stream has kept until it was due."""

FRAME: Final = len("NATS/1.0\r\n\r\n")
LINE: Final = len(": \r\n")

LONG: Final = 512
"""Letters of an id from which on the stream knows it by a digest, where it is to know it by its id."""

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_MEANINGFUL: Final = ("nats-", "status", "description")


@lru_cache(2048)
def _native_name(name: str) -> bool:
    return _TOKEN.fullmatch(name) is not None and not name.lower().startswith(_MEANINGFUL)


def _native_text(text: str) -> bool:
    """Whether it arrives as it is: neither trimmed, nor decoded, nor read as more lines."""
    return text.isascii() and text.isprintable() and text[:1] != " " and text[-1:] != " " and "=?" not in text


def envelope() -> Envelope:
    """What NATS can carry as it is."""
    return Envelope(lambda name, text: _native_text(text) and _native_name(name))


def raw_headers(message: Message, by: Envelope, publication: str | None) -> dict[str, str]:
    """All headers of a message. Without a `publication` the stream is to know it by its id."""
    if publication is not None:
        raw = by.fields(message)
        raw[PUBLICATION] = publication
        return raw
    known = _known_by_id(message, message.id or "", by.stamp(message.timestamp))
    raw = by.fields(message, identity=known != message.id)
    raw[PUBLICATION] = known
    return raw


def later_headers(
    message: Message, by: Envelope, due: datetime, schedule_id: str | None, publication: str
) -> dict[str, str]:
    """All headers of a message that a stream is to keep until it is due; one without a name is known by the publish."""
    raw = {
        **by.fields(message),
        AT: f"@at {due.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
        TARGET: message.topic,
    }
    return raw | ({PUBLICATION: publication} if schedule_id is None else {NAME: quote(schedule_id, safe="")})


def read_headers(block: bytes) -> dict[str, str]:
    """The headers of a message as it is stored."""
    _, *lines = block.decode("utf-8", "replace").split("\r\n")
    return {name: text.strip() for name, colon, text in (line.partition(":") for line in lines) if colon}


def read_later(raw: dict[str, str], value: bytes, by: Envelope) -> tuple[Message, datetime, str | None]:
    """A message that is kept until it is due, when that is, and its name. Raises ValueError, KeyError for any other."""
    due, name = datetime.fromisoformat(raw[AT].removeprefix("@at ")), raw.get(NAME)
    own = [(name, text) for name, text in raw.items() if name[:5] != "Nats-" and name != NAME]
    message, _ = by.message(raw[TARGET], value, own)
    return message, due, None if name is None else unquote(name)


def _known_by_id(message: Message, identity: str, time: str) -> str:
    """What the stream knows it by, by its id. A dead letter must not look like the message that it was."""
    if not identity or len(identity) > LONG or not _native_text(identity):
        identity = f"tk-sha256:{hashlib.sha256(identity.encode()).hexdigest()}"
    return f"{identity}~{time}" if is_dead_letter(message) else identity


def size_of(headers: dict[str, str], value: bytes) -> int:
    """The bytes of a message, as the server counts them. All our headers are ASCII."""
    return FRAME + sum(map(len, headers)) + sum(map(len, headers.values())) + LINE * len(headers) + len(value)


class Coordinates(msgspec.Struct, frozen=True):
    """What a delivery's reply subject says. `number` is how many the consumer had delivered, with this one."""

    stream: str
    consumer: str
    delivered: int
    seq: int
    number: int
    stored: int

    @property
    def copy(self) -> tuple[str, str, int, int]:
        """What all deliveries of this message to its group have in common."""
        return self.stream, self.consumer, self.seq, self.stored


def coordinates(reply: str) -> Coordinates:
    """Of `$JS.ACK.` and nine tokens in all, or more from domains: then two come before the stream."""
    tokens = reply.split(".")
    stream, consumer, delivered, seq, number, stored = tokens[2:8] if len(tokens) == 9 else tokens[4:10]
    return Coordinates(stream, consumer, int(delivered), int(seq), int(number), int(stored))


def unpack(msg: Msg, by: Envelope, at: Coordinates, attempt: int) -> Message:
    """The message of a delivery."""
    raw: dict[str, Any] = msg.headers or {}
    publication = raw.pop(PUBLICATION, None)
    if SCHEDULER in raw:
        raw = {name: text for name, text in raw.items() if name not in FIRED}
    message, _ = by.message(
        msg.subject, msg.data, raw.items(), offset=at.seq, identity=publication, attempt=attempt
    )
    if message.timestamp is None or message.id is None:
        return message.replace(
            timestamp=message.timestamp or EPOCH + timedelta(microseconds=at.stored // 1000),
            id=f"{at.stream}-{at.seq}" if message.id is None else message.id,
        )
    return message
