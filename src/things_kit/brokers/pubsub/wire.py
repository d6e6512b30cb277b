"""Messages as Pub/Sub has them, and back.

The value is the data, headers are attributes, and the key is the ordering key. Attributes of the engine's (`envelope`) have what
else there is. What does not fit (cloud.google.com/pubsub/quotas) is in `tk-packed`, and where that is longer than an
attribute may be, in the pieces `tk-packed-0`, `tk-packed-1`, …: headers with an empty name, one beyond 256 bytes or that
begins with `goog`, or a text beyond 1024 bytes; those beyond 90; keys that are no text of up to 1024 bytes; ids beyond 1024 bytes.

A key that cannot be an ordering key has its hash as such, with `tk~` before it.

Messages of foreign publishers: the ordering key is the key, the time is the service's, and the id is made of topic and
message id.
"""

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any, Final, Literal, TypeAlias

from google.pubsub_v1 import types

from things_kit.engine.envelope import PACKED, Envelope, as_text
from things_kit.messaging.errors import MessageTooLarge
from things_kit.messaging.message import Message

Proto: TypeAlias = Any
"""A message of protocol buffers itself: Google's wrapper around it costs microseconds for each field."""

Order: TypeAlias = Literal["key", "topic", "none"]

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
FIRST_PIECE: Final = f"{PACKED}-0"

PUBSUB_MESSAGE: Final[Any] = types.PubsubMessage.pb()


def _fits_one(name: str, text: str) -> bool:
    return (
        0 < len(name.encode()) <= NAME_BYTES
        and name[:4].lower() != "goog"
        and len(text.encode()) <= TEXT_BYTES
    )


def _fit(headers: Mapping[str, str], identity: str | None) -> bool:
    """Every published message pays for this; what is not plainly right is looked at again."""
    if len(headers) > MOST or (identity is not None and len(identity) > SHORT_TEXT):
        return False
    for name, text in headers.items():
        if (len(name) > SHORT_NAME or len(text) > SHORT_TEXT or name[:1] in {"", "g", "G"}) and not _fits_one(
            name, text
        ):
            return False
    return True


ENVELOPE: Final = Envelope(_fits_one, fits=_fit, most=MOST)


def pack(message: Message, order: Order, make: Callable[..., Proto] = PUBSUB_MESSAGE) -> Proto:
    """A message as it is published in one order. Runs once for each; `make` is what takes the fields.

    Raises:
        MessageTooLarge: There is more that does not fit than all attributes together take.
    """
    key, ordering_key = message.key, ""
    if order == "topic":
        ordering_key = WHOLE_TOPIC
    elif order == "key" and key is not None:
        ordering_key = _native(key) or ""
    apart = key is not None and (order != "key" or not ordering_key)
    attributes = ENVELOPE.fields(message, key=apart)
    if apart and order == "key" and key is not None:
        ordering_key = HASHED + hashlib.sha256(key).hexdigest()
    if len(attributes.get(PACKED, "")) > TEXT_BYTES:
        attributes |= _pieces(attributes.pop(PACKED), message.topic)
    return make(data=message.value, attributes=attributes, ordering_key=ordering_key)


def _native(key: bytes) -> str | None:
    """A key as an ordering key can be; None if it cannot."""
    text = as_text(key) if len(key) <= TEXT_BYTES else None
    return None if not text or text.startswith(HASHED) else text


def _pieces(whole: str, topic: str) -> dict[str, str]:
    """An attribute in parts; it is ASCII, so that it can be cut anywhere."""
    pieces = [whole[start : start + TEXT_BYTES] for start in range(0, len(whole), TEXT_BYTES)]
    if len(pieces) > PIECES:
        raise MessageTooLarge(
            f"the headers of a message for {topic!r} are too large: Pub/Sub takes {TEXT_BYTES} bytes for each, "
            f"and what is beyond that has {len(whole)} bytes together, where {TEXT_BYTES * PIECES} fit"
        )
    return {f"{PACKED}-{number}": piece for number, piece in enumerate(pieces)}


def unpack(topic: str, message: Proto, attempt: int) -> Message:
    """What a subscription brings; `attempt` is the service's count of deliveries, 0 where it does not count."""
    attributes = message.attributes
    fields = {name: attributes[name] for name in attributes}  # three times as fast as dict()
    ordering_key: str = message.ordering_key
    key = ordering_key.encode() if ordering_key and ordering_key != WHOLE_TOPIC else None
    if FIRST_PIECE in fields:
        fields[PACKED] = _joined(fields)
    found, _ = ENVELOPE.message(topic, message.data, fields.items(), key, attempt=attempt or 1)
    if found.id is None or found.timestamp is None:
        return found.replace(
            id=f"{topic}-{message.message_id}" if found.id is None else found.id,
            timestamp=found.timestamp or message.publish_time.ToDatetime(tzinfo=UTC),
        )
    return found


def _joined(fields: Mapping[str, str]) -> str:
    pieces: list[str] = []
    while (piece := fields.get(f"{PACKED}-{len(pieces)}")) is not None:
        pieces.append(piece)
    return "".join(pieces)
