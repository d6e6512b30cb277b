"""How a message is written for Service Bus, and what is read out of one that came, ours or not.

A value is the body, headers are application properties, and so is what the engine's envelope adds to them. The message id is
the native one, unless the service might take the message for another that it has had.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final, NamedTuple
from uuid import uuid4

from things_kit.brokers.servicebus.amqp.codec import EPOCH, Described, Symbol, encode, sections
from things_kit.brokers.servicebus.names import OURS, session_of, subscription_of
from things_kit.engine.dead_letter import is_dead_letter
from things_kit.engine.driver import Later, Scheduled
from things_kit.engine.envelope import GROUP, ID, Envelope, Fields, note, plain, size_of, text_of
from things_kit.messaging.errors import MessageTooLarge
from things_kit.messaging.message import Message
from things_kit.messaging.names import CONTENT_TYPE, REPLAY_GROUP, TIMESTAMP

log = logging.getLogger("things_kit.servicebus")

HEADER, ANNOTATIONS, PROPERTIES, FIELDS, DATA, SEQUENCE, VALUE = 0x70, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77
MESSAGE_ID, SUBJECT, REPLY_TO, CORRELATION, CONTENT, SESSION = 0, 3, 4, 5, 6, 10
DELIVERY_COUNT: Final = 4
NATIVE: Final = {
    CONTENT_TYPE: CONTENT,
    "subject": SUBJECT,
    "correlation-id": CORRELATION,
    "reply-to": REPLY_TO,
}
DUE: Final = Symbol("x-opt-scheduled-enqueue-time")

BATCH: Final = 0x80013700
"""The format of a message whose sections of data are messages."""

ID_LENGTH: Final = 128
"""Characters that a native message id may have."""

HEADER_BYTES: Final = 60_000
"""Service Bus takes 64 KiB of properties, its own included."""

_PROPERTY: Final = re.compile(r"[A-Za-z_][\x20-\x7e]{0,127}")
"""Names that properties may have."""

_number: Final = count().__next__


def _carries(name: str, _: str) -> bool:
    return _PROPERTY.fullmatch(name) is not None


_ENVELOPE: Final = Envelope(_carries, events=("cloudEvents_", "cloudEvents:"))


def pack(message: Message, *, sessions: bool, due: datetime | None = None) -> bytes:
    """A message that the engine has completed. Raises MessageTooLarge: it has more headers than Service Bus takes."""
    fields = _ENVELOPE.fields(message, identity=False)
    native = message.id or ""
    group = message.headers.get(REPLAY_GROUP)
    if group is not None:
        note(fields, group=subscription_of(group))
        native = uuid4().hex  # a topic that drops duplicates knows the id from the first time
    elif message.headers and is_dead_letter(message):
        when = message.headers.get(TIMESTAMP, message.timestamp)  # a bare one does not say
        native = f"{native}~{when}"  # the same message may fail again after a replay
    return _packed(message, fields, native, due, sessions=sessions)


def at(entry: Scheduled, *, sessions: bool) -> bytes:
    """A message for all groups once it is due. Raises as `pack`."""
    due = entry.due if entry.due > datetime.now(UTC) else None
    return pack(entry.message, sessions=sessions, due=due)


def copy(later: Later, *, sessions: bool) -> bytes:
    """The same message once more, for one group alone, once it is due. Raises as `pack`."""
    fields = _ENVELOPE.fields(later.message, identity=False)
    note(fields, attempt=later.attempt, group=subscription_of(later.group), suspect=later.suspect)
    due = later.due if later.due > datetime.now(UTC) else None
    return _packed(later.message, fields, uuid4().hex, due, sessions=sessions)


def _packed(message: Message, fields: Fields, native: str, due: datetime | None, *, sessions: bool) -> bytes:
    size = sum(len(name) + size_of(text) for name, text in fields.items())
    if size > HEADER_BYTES:
        raise MessageTooLarge(
            f"the headers of a message for {message.topic!r} have {size} bytes; Service Bus takes {HEADER_BYTES}"
        )
    if len(native) > ID_LENGTH:
        native = uuid4().hex
    if native != message.id:
        fields[ID] = message.id or ""
    kind = message.headers.get(CONTENT_TYPE, "")
    properties: list[Any] = [native, *[None] * 5, Symbol(kind) if kind and kind.isascii() else None]
    if sessions:
        properties += [None, None, None, session_of(message.key, _number())]
    parts = [Described(PROPERTIES, properties), Described(FIELDS, fields), Described(DATA, message.value)]
    if due is not None:
        parts.insert(0, Described(ANNOTATIONS, {DUE: due}))
    return b"".join(map(encode, parts))


def batch(messages: Iterable[bytes]) -> bytes:
    """Messages as one, of the format `BATCH`."""
    return b"".join(encode(Described(DATA, message)) for message in messages)


# --- and back


class Unpacked(NamedTuple):
    """A message that came, the attempt at which it was marked as a suspect, and the one subscription that it is for."""

    message: Message
    suspect: int = 0
    group: str | None = None


def unpack(topic: str, payload: bytes) -> Unpacked:
    """The message, ours or not. What cannot be read in it is left out; of what is no message at all, the bytes are the value."""
    try:
        return _unpacked(topic, payload)
    except Exception as error:  # noqa: BLE001 - whatever somebody else sent, it is to stop nobody
        digest = hashlib.sha256(payload).hexdigest()
        log.warning("a message of %r cannot be read, its value is all of it: %r", topic, error)
        return Unpacked(Message(topic, payload, id=f"{topic}-{digest}", timestamp=EPOCH))


def _unpacked(topic: str, payload: bytes) -> Unpacked:
    found: dict[int, Any] = {HEADER: [], ANNOTATIONS: {}, PROPERTIES: [], FIELDS: {}}
    body = b""
    for section, value in sections(payload):
        found[section] = value
        if section in {DATA, SEQUENCE, VALUE}:
            body += _body(value)
    properties, annotations = [*found[PROPERTIES], *[None] * 11], found[ANNOTATIONS]
    known = {name: properties[place] for name, place in NATIVE.items() if properties[place] is not None}
    fields = {str(text_of(name)): str(text_of(value)) for name, value in (known | found[FIELDS]).items()}
    key = _bytes(properties[SESSION] or annotations.get("x-opt-partition-key"))
    delivered = [*found[HEADER], *[None] * 5][DELIVERY_COUNT]
    message, packed = _ENVELOPE.message(
        topic,
        body,
        fields.items(),
        None if not key or key.startswith(OURS) else key,
        identity=None if properties[MESSAGE_ID] is None else text_of(properties[MESSAGE_ID]),
        attempt=1 + (delivered if isinstance(delivered, int) else 0),
    )
    if message.id is None:
        message = message.replace(id=f"{topic}-{annotations.get('x-opt-enqueue-sequence-number')}")
    enqueued = annotations.get("x-opt-enqueued-time")
    if message.timestamp is None and isinstance(enqueued, datetime):
        message = message.replace(timestamp=enqueued)
    return Unpacked(message, 0 if packed is None else packed.suspect, fields.get(GROUP))


def _body(value: Any) -> bytes:
    """Bytes and text are themselves; a value of another type is JSON."""
    if value is None or isinstance(value, bytes | str):
        return _bytes(value)
    return json.dumps(plain(value)).encode()


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else text_of(value).encode()
