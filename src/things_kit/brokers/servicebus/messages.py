"""How a message is packed for Service Bus, and what is made of one that came.

A value is the body. Headers are application properties. What Service Bus has no place for is in properties whose names
begin with `tk-`: the id where the native one is another, key, time, attempt, and the group that a copy is for.
"""

import base64
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final
from uuid import uuid4

from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage
from azure.servicebus.amqp import AmqpMessageBodyType

from things_kit.brokers.servicebus.names import session_of, subscription_of
from things_kit.engine.dead_letter import is_dead_letter
from things_kit.engine.envelope import is_own
from things_kit.messaging.errors import MessageTooLarge
from things_kit.messaging.message import Message
from things_kit.messaging.names import CONTENT_TYPE, REPLAY_GROUP, TIMESTAMP

GROUP: Final = "tk-group"
"""The subscription that alone gets a message; our subscriptions filter by it."""

_ID, _KEY, _KEY64, _TIME = "tk-id", "tk-key", "tk-key64", "tk-time"
_ATTEMPT, _HEADERS = "tk-attempt", "tk-headers"

ID_LENGTH: Final = 128
"""Characters that a native message id may have."""

HEADER_BYTES: Final = 60_000
"""Service Bus takes 64 KiB of properties, its own included."""

_PROPERTY: Final = re.compile(r"[A-Za-z_][\x20-\x7e]{0,127}")
"""Names that are properties under the same name; others are packed."""

_number: Final = count().__next__


def pack(message: Message, *, sessions: bool) -> ServiceBusMessage:
    """A message that the engine has completed.

    Raises:
        MessageTooLarge: It has more headers than Service Bus takes.
    """
    properties = _properties(message)
    native = message.id or ""
    group = message.headers.get(REPLAY_GROUP) if message.headers else None
    if group is not None:
        properties[GROUP] = subscription_of(group)
        native = uuid4().hex  # a topic that drops duplicates knows the id from the first time
    elif message.headers and is_dead_letter(message):
        when = message.headers.get(TIMESTAMP, message.timestamp)  # a bare one does not say
        native = f"{native}~{when}"  # the same message may fail again after a replay
    return _made(message, properties, native, sessions=sessions)


def copy(
    message: Message, group: str, attempt: int, due: datetime | None, *, sessions: bool
) -> ServiceBusMessage:
    """The same message once more, for one subscription alone, from `due` on."""
    properties = _properties(message)
    properties[GROUP] = group
    properties[_ATTEMPT] = attempt
    made = _made(message, properties, uuid4().hex, sessions=sessions)
    made.scheduled_enqueue_time_utc = due
    return made


def _made(
    message: Message, properties: dict[str | bytes, Any], native: str, *, sessions: bool
) -> ServiceBusMessage:
    if len(native) > ID_LENGTH:
        native = uuid4().hex
    if native != message.id:
        properties[_ID] = message.id
    return ServiceBusMessage(
        message.value,
        application_properties=properties,
        message_id=native,
        content_type=message.headers.get(CONTENT_TYPE) if message.headers else None,
        session_id=session_of(message.key, _number()) if sessions else None,
    )


def _properties(message: Message) -> dict[str | bytes, Any]:
    properties: dict[str | bytes, Any] = {}
    if message.headers:
        packed: dict[str, str] = {}
        size = 0
        for name, text in message.headers.items():
            size += len(name) + (len(text) if text.isascii() else len(text.encode()))
            (properties if _PROPERTY.fullmatch(name) else packed)[name] = text
        if size > HEADER_BYTES:
            raise MessageTooLarge(
                f"the headers of a message for {message.topic!r} have {size} bytes; Service Bus takes {HEADER_BYTES}"
            )
        if packed:
            properties[_HEADERS] = json.dumps(packed)
    if message.key is not None:
        _pack_key(message.key, properties)
    if message.timestamp is not None:
        properties[_TIME] = message.timestamp.isoformat()
    return properties


def _pack_key(key: bytes, properties: dict[str | bytes, Any]) -> None:
    try:
        properties[_KEY] = key.decode()
    except UnicodeDecodeError:  # the client takes bytes for text
        properties[_KEY64] = base64.b64encode(key).decode()


# --- and back


def unpack(topic: str, received: ServiceBusReceivedMessage) -> Message:
    """A message as it came, ours or not."""
    found = received.application_properties or {}
    time = found.get(_TIME.encode())
    delivered = received.delivery_count or 0
    if time is not None:
        try:
            moment = datetime.fromisoformat(_text(time)).astimezone(UTC)
            return _ours(topic, received, found, moment, delivered)
        except (ValueError, OverflowError, AttributeError, TypeError):
            pass  # somebody else's, in spite of the name
    return _foreign(topic, received, found, delivered)


def _ours(
    topic: str, received: ServiceBusReceivedMessage, found: Mapping[Any, Any], time: datetime, delivered: int
) -> Message:
    headers: dict[str, str] = {}
    fields: dict[str, Any] = {}
    for raw, value in found.items():
        name = _text(raw)
        if is_own(name):
            fields[name] = value
        else:
            headers[name] = _text(value)
    if _HEADERS in fields:
        headers.update({str(name): str(value) for name, value in json.loads(fields[_HEADERS]).items()})
    key = fields.get(_KEY)
    if _KEY64 in fields:
        key = base64.b64decode(fields[_KEY64], validate=True)
    identity = fields.get(_ID)
    return Message(
        topic,
        _body(received),
        None if key is None else _bytes(key),
        headers,
        None,
        None,
        time,
        _text(received.message_id if identity is None else identity),
        _number_of(fields.get(_ATTEMPT)) + delivered,
    )


def _foreign(
    topic: str, received: ServiceBusReceivedMessage, found: Mapping[Any, Any], delivered: int
) -> Message:
    headers = {
        name: text
        for name, text in (
            (CONTENT_TYPE, received.content_type),
            ("subject", received.subject),
            ("correlation-id", received.correlation_id),
            ("reply-to", received.reply_to),
        )
        if text is not None
    }
    headers = {name: _text(text) for name, text in headers.items()}
    for raw, value in found.items():
        if not is_own(name := _text(raw)):
            headers[name] = _text(value)
    key = next(
        (
            each
            for each in (found.get(_KEY.encode()), received.session_id, received.partition_key)
            if each is not None
        ),
        None,
    )
    identity = received.message_id
    return Message(
        topic,
        _body(received),
        None if key is None else _bytes(key),
        headers,
        None,
        None,
        received.enqueued_time_utc,
        f"{topic}-{received.enqueued_sequence_number}" if identity is None else _text(identity),
        _number_of(found.get(_ATTEMPT.encode())) + delivered,
    )


def is_for(received: ServiceBusReceivedMessage, group: str) -> bool:
    """Whether a message is for a subscription: one whose rules are not ours gets the copies of others too."""
    meant = (received.application_properties or {}).get(GROUP.encode())
    return meant is None or _text(meant) == group


def _body(received: ServiceBusReceivedMessage) -> bytes:
    body: Any = received.body
    if received.body_type is AmqpMessageBodyType.DATA:
        return b"".join(body)
    if received.body_type is AmqpMessageBodyType.SEQUENCE:
        return json.dumps(_plain([list(part) for part in body])).encode()
    if body is None:
        return b""
    if isinstance(body, bytes | str):
        return _bytes(body)
    return json.dumps(_plain(body)).encode()


def _plain(value: Any) -> Any:
    """A value of AMQP's types in JSON's."""
    if isinstance(value, Mapping):
        return {_text(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else _text(value).encode()


def _number_of(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1
