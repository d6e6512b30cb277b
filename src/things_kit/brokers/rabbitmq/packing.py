r"""Messages as AMQP has them, and back.

| of a message | in AMQP |
|---|---|
| value | the body |
| key | the routing key, where the exchange is the topic's own and the key is UTF-8 of 1 to 255 bytes; else `tk-key` |
| headers | the headers, as long strings; `content-type` is the property of that name |
| id | the property `message-id`; an id of more than 255 bytes `tk-id` |
| timestamp | the property `timestamp`, in seconds; exactly, in ISO 8601, `tk-time` |

`tk-headers` is JSON of those headers that AMQP cannot carry: names of more than 255 bytes, and names that RabbitMQ takes as
meant for itself. A message that waits for its next attempt has `tk-attempt`, and `tk-due`: the time when it is due.

Of foreign messages the properties `content-type`, `content-encoding`, `correlation-id`, `reply-to`, `app-id` and `type` are
headers, unless there are headers of these names. A header that is no string is shown as JSON; bytes that are no UTF-8 as
\xNN. An id is made of the queue and a hash of the content, as AMQP has no positions; a missing time is that of arrival.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec
from pika.spec import Basic, BasicProperties

from things_kit.engine.driver import Delivery
from things_kit.messaging.message import RESERVED_PREFIX, Message
from things_kit.messaging.names import CONTENT_TYPE

KEY: Final = "tk-key"
ID: Final = "tk-id"
TIME: Final = "tk-time"
HEADERS: Final = "tk-headers"
ATTEMPT: Final = "tk-attempt"
DUE: Final = "tk-due"

LONGEST: Final = 255
"""Bytes of a short string in AMQP."""

PERSISTENT: Final = 2

THEIRS: Final = (
    "CC", "BCC", "x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count",
    "x-received-from", "x-delay", "x-match", "x-opt-", "x-stream-",
)  # fmt: skip
"""Names, or their beginnings, of headers that RabbitMQ reads, changes or adds on the way."""

BOOKKEEPING: Final = ("x-delivery-count", "x-acquired-count")
"""Headers that are the broker's notes of a delivery, and no part of any message."""

DIED: Final = ("x-death", "x-first-death-", "x-last-death-")
"""Headers that the broker adds when a message leaves a queue for its dead-letter exchange, as from our delay queues."""

PROPERTIES: Final = {
    "content_type": CONTENT_TYPE,
    "content_encoding": "content-encoding",
    "correlation_id": "correlation-id",
    "reply_to": "reply-to",
    "app_id": "app-id",
    "type": "type",
}

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
SECOND: Final = timedelta(seconds=1)
LATEST: Final = 253_402_300_799
"""The last second of the year 9999."""

NOT_OURS: Final = (AttributeError, TypeError, ValueError, OverflowError, msgspec.MsgspecError)
"""How headers of our names fail that somebody else wrote."""


class Letter(NamedTuple):
    """What is handed to `basic_publish`."""

    exchange: str
    routing_key: str
    properties: BasicProperties
    body: bytes

    @property
    def mark(self) -> tuple[str, str, object]:
        """By what a letter that the broker returns is known again."""
        return self.exchange, self.routing_key, self.properties.message_id or _raw(self.properties, ID)


def _raw(properties: BasicProperties, name: str) -> object:
    return (properties.headers or {}).get(name)


class Packer:
    """Packs the messages of one batch: most of them share their time."""

    def __init__(self) -> None:
        self._last: datetime | None = None
        self._stamp: tuple[int | None, str] = (None, "")

    def pack(self, message: Message, exchange: str, key_is_free: bool, routing_key: str) -> Letter:
        """A letter; the message's key is the routing key where that is free for it."""
        moment, identity = message.timestamp, message.id
        if moment is not self._last:
            self._last = moment
            self._stamp = _stamp(moment)
        seconds, exact = self._stamp
        headers: dict[str, Any] = {**message.headers, TIME: exact}
        content_type = headers.pop(CONTENT_TYPE, None) if CONTENT_TYPE in headers else None
        for name in message.headers:
            if len(name) > 60 or name[:1] in "CBx":
                headers = _reserved(headers)
                break
        if content_type is not None and (not content_type or len(content_type.encode()) > LONGEST):
            headers[CONTENT_TYPE], content_type = content_type, None
        key = message.key
        if key is not None:
            native = _native_key(key) if key_is_free else None
            if native is None:
                headers[KEY] = key
            else:
                routing_key = native
        if identity is None or not identity or (len(identity) > 63 and len(identity.encode()) > LONGEST):
            headers[ID], identity = identity or "", None
        return Letter(
            exchange,
            routing_key,
            BasicProperties(
                content_type=content_type,
                headers=headers,
                delivery_mode=PERSISTENT,
                message_id=identity,
                timestamp=seconds,
            ),
            message.value,
        )

    def again(self, message: Message, queue: str, due: datetime, attempt: int) -> Letter:
        """A letter to a queue, of a message that is to be handled again when it is due."""
        letter = self.pack(message, "", False, queue)
        waits = {ATTEMPT: str(attempt), DUE: due.isoformat(timespec="milliseconds")}
        letter.properties.headers = {**(letter.properties.headers or {}), **waits}
        return letter


def _stamp(moment: datetime | None) -> tuple[int | None, str]:
    if moment is None:
        return None, ""
    seconds = (moment - EPOCH) // SECOND
    return seconds if seconds >= 0 else None, moment.isoformat(timespec="microseconds")


def _native_key(key: bytes) -> str | None:
    if not 0 < len(key) <= LONGEST:
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None


def _reserved(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers as AMQP can carry them."""
    apart = {
        name: text
        for name, text in headers.items()
        if name.startswith(THEIRS) or len(name.encode()) > LONGEST
    }
    if not apart:
        return dict(headers)
    kept = {name: text for name, text in headers.items() if name not in apart}
    kept[HEADERS] = json.dumps(apart)
    return kept


class Arrival(NamedTuple):
    """A message as it came, and when it may be handled."""

    delivery: Delivery
    due: datetime | None


class Unpacker:
    """Unpacks what one queue delivers."""

    def __init__(self, topic: str, queue: str, exchange: str | None) -> None:
        self._topic = topic
        self._queue = queue
        self._exchange = exchange  # in which the routing key is the message's key
        self._times: dict[str, datetime] = {}

    def unpack(self, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> Arrival:
        """A message; its delivery's token is the delivery tag and the message itself."""
        try:
            message, due = self._ours(method, properties, body)
        except NOT_OURS:
            message, due = self._foreign(method, properties, body), None
        return Arrival(Delivery(message, (method.delivery_tag, message)), due)

    def _ours(  # noqa: C901, PLR0912 - once for each message: a call for each header would cost more
        self, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> tuple[Message, datetime | None]:
        raw: dict[Any, Any] = properties.headers  # type: ignore[assignment] # None fails as what is not ours
        time = self._times.get(raw[TIME]) if TIME in raw else None
        if time is None:
            if TIME not in raw:
                return self._foreign(method, properties, body), None
            time = self._parse(raw[TIME])
        headers: dict[str, str] = {}
        key: bytes | None = None
        identity, attempt, due, packed = properties.message_id, 1, None, None
        for name, value in raw.items():
            if name[:3] != RESERVED_PREFIX:
                headers[name] = value
            elif name == KEY:
                key = value if type(value) is bytes else value.encode()
            elif name == ID:
                identity = value
            elif name == HEADERS:
                packed = value
            elif name == ATTEMPT:
                attempt = int(value)
            elif name == DUE:
                due = datetime.fromisoformat(value)
        if len(headers) > 0:
            _tidy(headers)
        if packed is not None:
            headers.update(msgspec.json.decode(packed, type=dict[str, str]))
        if properties.content_type is not None:
            headers[CONTENT_TYPE] = properties.content_type
        if key is None and method.routing_key and method.exchange == self._exchange:
            key = _bytes(method.routing_key)
        if type(identity) is not str:
            raise ValueError("no id")
        message = Message(self._topic, body, key, headers, None, None, time, identity, attempt)
        return message, due

    def _parse(self, text: str) -> datetime:
        time = datetime.fromisoformat(text)
        time = time.astimezone(UTC) if time.tzinfo is not UTC else time
        if len(self._times) > 1000:
            self._times.clear()
        self._times[text] = time
        return time

    def _foreign(self, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> Message:
        headers: dict[str, str] = {}
        for attribute, name in PROPERTIES.items():
            value = getattr(properties, attribute)
            if value is not None:
                headers[name] = _text(value)
        for name, value in (properties.headers or {}).items():
            if not _text(name).startswith((RESERVED_PREFIX, *BOOKKEEPING)):
                headers[_text(name)] = _text(value)
        key = _bytes(method.routing_key) if method.routing_key and method.exchange == self._exchange else None
        identity = properties.message_id
        if not identity:
            content = blake2b(digest_size=12)
            for part in (
                key or b"",
                repr(properties.timestamp).encode(),
                repr(sorted(headers.items())).encode(),
                body,
            ):
                content.update(len(part).to_bytes(8, "big") + part)
            identity = f"{self._queue}-{content.hexdigest()}"
        return Message(
            self._topic, body, key, headers, None, None, _time(properties.timestamp), _text(identity)
        )


def _tidy(headers: dict[str, Any]) -> None:
    """Leave out what the broker added to a message of ours, and let everything be text."""
    for name in [name for name, value in headers.items() if type(value) is not str or name[:2] == "x-"]:
        if name.startswith((*BOOKKEEPING, *DIED)):
            del headers[name]
        else:
            headers[name] = _text(headers[name])


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _time(stamp: int | None) -> datetime:
    """Of the property `timestamp`: seconds, or milliseconds as some clients have it."""
    if stamp is None:
        return datetime.now(UTC)
    seconds = stamp if stamp <= LATEST else stamp / 1000
    return EPOCH + SECOND * seconds if seconds <= LATEST else datetime.now(UTC)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal | float):
        return str(value)
    return "" if value is None else json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    """What JSON can say of a value in a header."""
    if isinstance(value, Mapping):
        return {_text(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, str | bytes | datetime):
        return _text(value)
    if isinstance(value, Sequence):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, int) else str(value)
