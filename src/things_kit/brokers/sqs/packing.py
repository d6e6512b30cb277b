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
import binascii
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final

import msgspec

from things_kit.messaging.errors import MessageTooLarge
from things_kit.messaging.message import RESERVED_PREFIX, Message

ATTRIBUTE: Final = "tk-message"

MOST_ATTRIBUTES: Final = 10

EMPTY: Final = "-"
"""The body of a message whose value is empty: AWS takes none without a character."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_FORBIDDEN: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML does not have, and so no body and no attribute."""

_NAME: Final = re.compile(r"(?!(?i:aws\.|amazon\.)|\.)(?:[A-Za-z0-9_-]|\.(?!\.|$)){1,256}")
"""A name that an attribute may have."""

Entry = dict[str, Any]
"""A message as a request has it, or an answer."""


class Meta(msgspec.Struct, omit_defaults=True, gc=False):
    """What the attribute `tk-message` says."""

    id: str | None = None
    time: datetime | None = None
    n: int = 0
    key: str | None = None
    key64: str | None = None
    body: str | None = None
    headers: dict[str, str] | None = None
    attempt: int = 1
    due: float | None = None


_decode_meta: Final = msgspec.json.Decoder(Meta).decode
_encode_meta: Final = msgspec.json.Encoder().encode
_count: Final = count(1).__next__
_names: dict[str, bool] = {}
"""Whether names of headers can be those of attributes: programs use few."""


class Packed(msgspec.Struct, gc=False):
    """A message, ready for a request: its body, its attributes, and how many bytes AWS counts."""

    body: str
    attributes: dict[str, Entry]
    size: int


def pack(message: Message, limit: int, *, attempt: int = 1, due: float | None = None) -> Packed:
    """A message that the engine has completed. Raises MessageTooLarge if AWS would not take it as it is packed."""
    meta = Meta(message.id, message.timestamp, _count(), attempt=attempt, due=due)
    body = _pack_body(message.value, meta)
    if message.key is not None:
        _pack_key(message.key, meta)
    attributes: dict[str, Entry] = {}
    size = len(body) if body.isascii() else len(body.encode())
    for name, text in message.headers.items():
        if len(attributes) < MOST_ATTRIBUTES - 1 and _can_be_attribute(name, text):
            attributes[name] = {"DataType": "String", "StringValue": text}
            size += len(name) + 6 + (len(text) if text.isascii() else len(text.encode()))
        elif meta.headers is None:
            meta.headers = {name: text}
        else:
            meta.headers[name] = text
    said = _text_of(meta)
    attributes[ATTRIBUTE] = {"DataType": "String", "StringValue": said}
    size += len(ATTRIBUTE) + 6 + len(said)
    if size > limit:
        raise MessageTooLarge(
            f"a message for {message.topic!r} has {size} bytes as it is sent; AWS takes {limit} "
            "(bytes that are no text take a third more)"
        )
    return Packed(body, attributes, size)


def _pack_body(value: bytes, meta: Meta) -> str:
    if not value:
        meta.body = "empty"
        return EMPTY
    try:
        text = value.decode()
    except UnicodeDecodeError:
        pass
    else:
        if text.isprintable() or not _FORBIDDEN.search(text):
            return text
    meta.body = "base64"
    return base64.b64encode(value).decode()


def _pack_key(key: bytes, meta: Meta) -> None:
    try:
        meta.key = key.decode()
    except UnicodeDecodeError:
        meta.key64 = base64.b64encode(key).decode()


def _can_be_attribute(name: str, text: str) -> bool:
    possible = _names.get(name)
    if possible is None:
        if len(_names) > 1000:
            _names.clear()
        possible = _names[name] = _NAME.fullmatch(name) is not None
    return possible and bool(text) and (text.isprintable() or not _FORBIDDEN.search(text))


def _text_of(meta: Meta) -> str:
    said = _encode_meta(meta).decode()
    # An attribute has the characters of XML alone; JSON can write all others in ASCII
    return said if said.isascii() else json.dumps(msgspec.to_builtins(meta))


# --- and back


class Unpacked(msgspec.Struct, gc=False):
    """A message as it came, and what the driver needs to know of it."""

    message: Message
    sent: int
    number: int
    due: float | None


def unpack(topic: str, entry: Entry) -> Unpacked:
    """A message of ReceiveMessage, ours or not."""
    attributes: Mapping[str, Entry] = entry.get("MessageAttributes") or {}
    system: Mapping[str, str] = entry.get("Attributes") or {}
    sent = int(system.get("SentTimestamp") or 0)
    ours = attributes.get(ATTRIBUTE)
    if ours is not None:
        try:
            return _unpack_ours(
                topic, entry["Body"], attributes, _decode_meta(ours["StringValue"]), sent, entry
            )
        except (KeyError, ValueError, OverflowError, binascii.Error, msgspec.MsgspecError):
            pass  # somebody else's, in spite of the name
    group = system.get("MessageGroupId")
    message = Message(
        topic,
        entry["Body"].encode(errors="replace"),
        None if group is None else group.encode(),
        _headers(attributes),
        timestamp=_moment(sent),
        id=entry["MessageId"],
    )
    return Unpacked(message, sent, 0, None)


def _unpack_ours(
    topic: str, body: str, attributes: Mapping[str, Entry], meta: Meta, sent: int, entry: Entry
) -> Unpacked:
    headers = _headers(attributes) if len(attributes) > 1 else {}
    if meta.headers:
        headers.update(meta.headers)
    if meta.body is None:
        value = body.encode()
    elif meta.body == "base64":
        value = base64.b64decode(body, validate=True)
    else:
        value = b""
    key = None
    if meta.key is not None:
        key = meta.key.encode()
    elif meta.key64 is not None:
        key = base64.b64decode(meta.key64, validate=True)
    elif meta.id is None and (group := (entry.get("Attributes") or {}).get("MessageGroupId")):
        key = group.encode()  # a foreign message that only says how to read its body
    moment = meta.time
    if moment is None:
        moment = _moment(sent)
    elif moment.tzinfo is not UTC:
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    identity = entry["MessageId"] if meta.id is None else meta.id
    message = Message(topic, value, key, headers, None, None, moment, identity, max(1, meta.attempt))
    return Unpacked(message, sent, meta.n, meta.due)


def _headers(attributes: Mapping[str, Entry]) -> dict[str, str]:
    return {
        _text(name): _text(value["StringValue"]) if "StringValue" in value else _of_binary(value)
        for name, value in attributes.items()
        if not name.startswith(RESERVED_PREFIX)
    }


def _text(said: str) -> str:
    """What UTF-8 can carry: JSON has halves of characters too, and an emulator lets them pass."""
    return said if said.isascii() else said.encode(errors="replace").decode()


def _of_binary(value: Entry) -> str:
    return base64.b64encode(value.get("BinaryValue") or b"").decode()


def _moment(sent: int) -> datetime:
    return EPOCH + timedelta(milliseconds=sent)
