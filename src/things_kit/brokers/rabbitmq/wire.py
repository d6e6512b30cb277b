r"""Messages as AMQP has them, and back.

| of a message | in AMQP |
|---|---|
| value | the body |
| key | the routing key, where the exchange is the topic's own and the key is UTF-8 of 1 to 255 bytes |
| headers | the headers, as long strings; `content-type` is the property of that name |
| id | the property `message-id`, in up to 255 bytes |
| timestamp | the property `timestamp`, in seconds |

What else there is, is in headers of the engine's (`envelope`): the exact time, other keys and ids, headers with names of more than
255 bytes or that RabbitMQ takes as meant for itself, and when and at which attempt a copy is due.

Of foreign messages the properties `content-type`, `content-encoding`, `correlation-id`, `reply-to`, `app-id` and `type` are
headers, unless there are headers of these names. An id is made of the queue and a hash of the content, as AMQP has no
positions; a missing time is that of arrival.
"""

from collections.abc import Hashable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from pika.spec import BasicProperties

from things_kit.brokers.rabbitmq.counting import CONVICTS, Counts, losses, was_lost
from things_kit.engine.driver import Delivery
from things_kit.engine.envelope import EPOCH, ID, TIME, Envelope, Fields, as_text, note, text_of
from things_kit.engine.uncounted import Uncounted
from things_kit.messaging.message import Message
from things_kit.messaging.names import CONTENT_TYPE

LONGEST: Final = 255
"""Bytes of a short string in AMQP."""

SHORT: Final = LONGEST // 4
"""Characters that fit into one in any case."""

PERSISTENT: Final = 2

THEIRS: Final = (
    "CC", "BCC", "x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count",
    "x-received-from", "x-delay", "x-match", "x-opt-", "x-stream-",
)  # fmt: skip
"""Names, or their beginnings, of headers that RabbitMQ reads, changes or adds on the way."""

COUNT: Final = "x-delivery-count"
"""How often a quorum queue had handed out what comes again."""

DEATHS: Final = "x-death"
"""Out of which queues it has come by expiry."""

BOOKKEEPING: Final = (COUNT, "x-acquired-count")
"""Headers that are the broker's notes of a delivery, and no part of any message."""

ADDED: Final = (*BOOKKEEPING, DEATHS, "x-first-death-", "x-last-death-")
"""Headers that the broker adds to ours, also when they leave a delay queue for its dead-letter exchange."""

PROPERTIES: Final = {
    "content_type": CONTENT_TYPE,
    "content_encoding": "content-encoding",
    "correlation_id": "correlation-id",
    "reply_to": "reply-to",
    "app_id": "app-id",
    "type": "type",
}

GIVEN_BACK: Final = Uncounted()
"""Copies that any broker of this process gave back: another one may have the consumer that comes next."""

SECOND: Final = timedelta(seconds=1)
LATEST: Final = 253_402_300_799
"""The last second of the year 9999."""


def _carried(name: str, _text: str) -> bool:
    return not name.startswith(THEIRS) and len(name.encode()) <= LONGEST


def _fit(headers: Mapping[str, str], _identity: str | None) -> bool:
    for name in headers:  # noqa: SIM110 - every published message pays for this, and a generator costs twice as much
        if len(name) > SHORT or (name[:1] in "CBx" and name.startswith(THEIRS)):
            return False
    return True


ENVELOPE: Final = Envelope(_carried, fits=_fit, events=("cloudEvents_", "cloudEvents:"))


class Letter(NamedTuple):
    """What is handed to `basic_publish`."""

    exchange: str
    routing_key: str
    properties: BasicProperties
    body: bytes

    @property
    def mark(self) -> tuple[str, str, object]:
        """By what a letter that the broker returns is known again."""
        identity = self.properties.message_id or (self.properties.headers or {}).get(ID)
        return self.exchange, self.routing_key, identity


def pack(message: Message, exchange: str, key_is_free: bool, routing_key: str) -> Letter:
    """A letter; the message's key is the routing key where that is free for it."""
    moment, identity, key = message.timestamp, message.id or "", message.key
    native = _native(key) if key_is_free and key is not None else None
    known = 0 < len(identity) <= SHORT or 0 < len(identity.encode()) <= LONGEST
    headers: dict[str, Any] = ENVELOPE.fields(message, identity=not known, key=native is None)
    content_type = headers.pop(CONTENT_TYPE, None)
    if content_type is not None and not 0 < len(content_type.encode()) <= LONGEST:
        headers[CONTENT_TYPE], content_type = content_type, None
    properties = BasicProperties(
        content_type=content_type,
        headers=headers,
        delivery_mode=PERSISTENT,
        message_id=identity if known else None,
        timestamp=int(moment.timestamp()) if moment is not None and moment >= EPOCH else None,
    )
    return Letter(exchange, routing_key if native is None else native, properties, message.value)


def pack_again(message: Message, queue: str, due: float, attempt: int, mark: int = 0) -> Letter:
    """A letter to a queue, of a message that is to be handled again when it is due, in seconds since 1970.

    `mark`: how often its receiver was lost while it was handled alone, if it comes out of the queue of a receiver's own.
    """
    letter, waits = pack(message, "", False, queue), Fields()
    note(waits, attempt=attempt, due=due, suspect=mark)
    letter.properties.headers = {**(letter.properties.headers or {}), **waits}
    return letter


def _native(key: bytes) -> str | None:
    return as_text(key) if 0 < len(key) <= LONGEST else None


Place: TypeAlias = tuple[tuple[str, ...], str, str]
"""A queue: the hosts, the virtual host's path, its name."""


class Token(msgspec.Struct, gc=False):
    """What a receiver needs to know of a delivery.

    Attributes:
        tag: Its delivery tag.
        message: The message as it came.
        counted: Its attempt by the broker's count alone.
        copy: Which copy of which message it is: its queue, its id, the attempt that is stored with it, and the mark.
        renewed: Whether a copy is held in its place, in a queue that is nobody else's.
        lost: How often its receiver was lost while it was handled alone.
    """

    tag: int
    message: Message
    counted: int
    copy: Hashable
    renewed: bool = False
    lost: int = 0


class Unpacker:
    """Unpacks what one queue delivers, whose `place` no other has, and which counts what comes back."""

    def __init__(self, topic: str, queue: str, exchange: str | None, place: Place, counts: Counts) -> None:
        self._place = place
        self._counts = counts
        self._topic = topic
        self._queue = queue
        self._exchange = exchange  # in which the routing key is the message's key

    def unpack(self, method: Any, properties: BasicProperties, body: bytes) -> Delivery:
        """A message; its delivery has a `Token`."""
        raw: Mapping[Any, Any] = properties.headers or {}
        theirs = ADDED if TIME in raw else BOOKKEEPING
        fields = {
            name: value if value.__class__ is str else text_of(value)
            for name, value in raw.items()
            if name[:2] != "x-" or not name.startswith(theirs)
        }
        if TIME not in raw:
            fields = {**_properties(properties), **fields}
        elif properties.content_type is not None:
            fields[CONTENT_TYPE] = properties.content_type
        key = None
        if method.routing_key and method.exchange == self._exchange:
            key = text_of(method.routing_key).encode()
        message, told = ENVELOPE.message(
            self._topic, body, fields.items(), key, None, None, properties.message_id
        )
        if message.id is None or message.timestamp is None:
            message = self._completed(message, properties)
        due, mark = (None, 0) if told is None else (told.due, told.suspect)
        counted, copy = message.attempt, (self._place, message.id, message.attempt, mark)
        died = DEATHS in raw and was_lost(raw[DEATHS])
        if method.redelivered or died:
            counted += losses(raw.get(COUNT), self._counts, died=died)
            message = message.replace(attempt=GIVEN_BACK.attempt(copy, counted))
        lost = mark if died else 0
        suspect = message.attempt - 1 if lost >= CONVICTS else 0
        return Delivery(
            message, Token(method.delivery_tag or 0, message, counted, copy, lost=lost), suspect, due
        )

    def _completed(self, message: Message, properties: BasicProperties) -> Message:
        """With an id and a time where nothing tells them."""
        identity = message.id
        if identity is None:
            content = blake2b(digest_size=12)
            for part in (
                message.key or b"",
                repr(properties.timestamp).encode(),
                repr(sorted(message.headers.items())).encode(),
                message.value,
            ):
                content.update(len(part).to_bytes(8, "big") + part)
            identity = f"{self._queue}-{content.hexdigest()}"
        return message.replace(id=identity, timestamp=message.timestamp or _time(properties.timestamp))


def _properties(properties: BasicProperties) -> dict[str, str]:
    told = ((name, getattr(properties, attribute)) for attribute, name in PROPERTIES.items())
    return {name: text_of(value) for name, value in told if value is not None}


def _time(stamp: int | None) -> datetime:
    """Of the property `timestamp`: seconds, or milliseconds as some clients have it."""
    if stamp is None:
        return datetime.now(UTC)
    seconds = stamp if stamp <= LATEST else stamp / 1000
    return EPOCH + SECOND * seconds if seconds <= LATEST else datetime.now(UTC)
