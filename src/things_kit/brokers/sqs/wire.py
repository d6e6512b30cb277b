"""Messages as SNS and SQS have them, and back.

The value is the body where that may be: text of the characters that XML has, and not empty. Headers are message
attributes of the type String where name and value may be, at most nine of them, as a message with more than ten
attributes is dropped on its way from SNS to SQS. All else is in one attribute of ours, `tk-message`, which is JSON:

    id       the message's id
    time     its time, in RFC 3339
    n        a number that grows with each message of one connection
    key      its key, as text; `key64` where it is no text, in base64
    body     "base64" or "empty" where the value is not the body as it stands
    headers  those headers that are no attributes
    attempt  the attempt with which it comes, if not the first
    due      when it is due, in seconds since 1970, if it waits

Messages of others: text attributes, and numbers, are headers; of binary ones it is the base64. The message group of a
FIFO queue, or of a fair one, is the key; the id is the one that SQS gave, and the time that of sending.
"""

import base64
import contextlib
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from itertools import count
from typing import Any, Final

import msgspec

from things_kit.brokers.sqs.options import LONGEST_HIDDEN
from things_kit.engine.envelope import EPOCH, NOT_OURS, Packed, as_text, is_own, size_of
from things_kit.messaging.errors import MessageTooLarge
from things_kit.messaging.message import Message

ATTRIBUTE: Final = "tk-message"

MOST_ATTRIBUTES: Final = 10

EMPTY: Final = "-"
"""The body of a message whose value is empty: AWS takes none without a character."""

_FORBIDDEN: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML does not have, and so no body and no attribute."""

_NAME: Final = re.compile(r"(?!(?i:aws\.|amazon\.)|\.)(?:[A-Za-z0-9_-]|\.(?!\.|$)){1,256}")
"""A name that an attribute may have."""

Entry = dict[str, Any]
"""A message as a request has it, or an answer."""


class Meta(Packed):
    """What the attribute `tk-message` says."""

    n: int = 0
    body: str | None = None


_decode_meta: Final = msgspec.json.Decoder(Meta).decode
_count: Final = count(1).__next__


class Parcel(msgspec.Struct, gc=False):
    """A message, ready for a request: its body, its attributes, and how many bytes AWS counts."""

    body: str
    attributes: dict[str, Entry]
    size: int


def pack(
    message: Message, limit: int, *, attempt: int = 1, due: float | None = None, suspect: int = 0
) -> Parcel:
    """A message that the engine has completed. Raises MessageTooLarge if AWS would not take it as it is packed."""
    meta = Meta(id=message.id, time=message.timestamp, n=_count(), attempt=attempt, due=due, suspect=suspect)
    body = _pack_body(message.value, meta)
    if message.key is not None:
        meta.key = as_text(message.key)
        meta.key64 = message.key if meta.key is None else None
    attributes: dict[str, Entry] = {}
    size = size_of(body)
    for name, text in message.headers.items():
        if len(attributes) < MOST_ATTRIBUTES - 1 and _can_be_attribute(name, text):
            attributes[name] = {"DataType": "String", "StringValue": text}
            size += len(name) + 6 + size_of(text)
        else:
            meta.headers[name] = text
    said = meta.text()
    attributes[ATTRIBUTE] = {"DataType": "String", "StringValue": said}
    size += len(ATTRIBUTE) + 6 + len(said)
    if size > limit:
        raise MessageTooLarge(
            f"a message for {message.topic!r} has {size} bytes as it is sent; AWS takes {limit} "
            "(bytes that are no text take a third more)"
        )
    return Parcel(body, attributes, size)


def _pack_body(value: bytes, meta: Meta) -> str:
    if not value:
        meta.body = "empty"
        return EMPTY
    text = as_text(value)
    if text is not None and (text.isprintable() or not _FORBIDDEN.search(text)):
        return text
    meta.body = "base64"
    return base64.b64encode(value).decode()


@lru_cache(1000)
def _possible(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def _can_be_attribute(name: str, text: str) -> bool:
    return _possible(name) and bool(text) and (text.isprintable() or not _FORBIDDEN.search(text))


# --- and back


class Unpacked(msgspec.Struct, gc=False):
    """A message as it came, and what the driver needs to know of it.

    Attributes:
        message: The message; its attempt counts the deliveries of this copy.
        sent: When it was sent, in milliseconds since 1970.
        number: By which those that were sent together are sorted.
        due: Before which it is not to be handed out.
        suspect: The mark that this copy carries.
        counts: Whether this delivery is an attempt: not if it came no more often than it could before it was due.
    """

    message: Message
    sent: int
    number: int = 0
    due: float | None = None
    suspect: int = 0
    counts: bool = True


def unpack(topic: str, entry: Entry) -> Unpacked:
    """A message of ReceiveMessage, ours or not."""
    attributes: Mapping[str, Entry] = entry.get("MessageAttributes") or {}
    system: Mapping[str, str] = entry.get("Attributes") or {}
    sent, group = int(system.get("SentTimestamp") or 0), system.get("MessageGroupId")
    message = Message(
        topic,
        entry["Body"].encode(errors="replace"),
        None if group is None else group.encode(),
        _headers(attributes),
        timestamp=EPOCH + timedelta(milliseconds=sent),
        id=entry["MessageId"],
        attempt=int(system.get("ApproximateReceiveCount") or 1),
    )
    if ATTRIBUTE in attributes:
        with contextlib.suppress(KeyError, *NOT_OURS):  # somebody else's, in spite of the name
            return _unpack_ours(message, entry["Body"], attributes[ATTRIBUTE]["StringValue"], sent)
    return Unpacked(message, sent)


def _unpack_ours(message: Message, body: str, said: str, sent: int) -> Unpacked:
    meta = _decode_meta(said)
    # What has no key is sorted by a message group as well; who only says how to read a body has that of others
    key = message.key if meta.id is None else None
    early = 0 if meta.due is None else _early(meta.due, sent)
    bare = message.replace(value=_value(body, meta), key=key, attempt=max(1, message.attempt - early))
    return Unpacked(meta.onto(bare), sent, meta.n, meta.due, meta.suspect, message.attempt > early)


def _early(due: float, sent: int) -> int:
    """How many deliveries of a copy came before it was due, as nothing can be hidden for longer."""
    return 1 + int(max(0.0, due - sent / 1000) / LONGEST_HIDDEN)


def _value(body: str, meta: Meta) -> bytes:
    if meta.body is None:
        return body.encode()
    return base64.b64decode(body, validate=True) if meta.body == "base64" else b""


def _headers(attributes: Mapping[str, Entry]) -> dict[str, str]:
    return {
        _text(name): _text(value["StringValue"]) if "StringValue" in value else _of_binary(value)
        for name, value in attributes.items()
        if not is_own(name)
    }


def _text(said: str) -> str:
    """What UTF-8 can carry: JSON has halves of characters too, and an emulator lets them pass."""
    return said if said.isascii() else said.encode(errors="replace").decode()


def _of_binary(value: Entry) -> str:
    return base64.b64encode(value.get("BinaryValue") or b"").decode()
