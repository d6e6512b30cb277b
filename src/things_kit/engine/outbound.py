"""Makes messages fit to be sent: checked, and with an id and a time."""

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from things_kit.engine.naming import check_name
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError
from things_kit.messaging.message import RESERVED_PREFIX, Message


def prepare(messages: Sequence[Message], max_bytes: int | None) -> tuple[list[Message], dict[int, Exception]]:
    """Messages with id and timestamp, and by index the errors of those that must not be sent."""
    now = datetime.now(UTC)
    batch = secrets.token_hex(12)  # one draw from the system's entropy for all; the index tells them apart
    ready: list[Message] = []
    refused: dict[int, Exception] = {}
    for index, message in enumerate(messages):
        try:
            _check(message, max_bytes)
            time = message.timestamp
            if time is None or message.id is None or time.tzinfo is not UTC:
                message = _complete(message, f"{batch}-{index}", now)  # noqa: PLW2901
            ready.append(message)
        except PublishError as error:
            refused[index] = error
    return ready, refused


def _complete(message: Message, identity: str, now: datetime) -> Message:
    time = message.timestamp
    if time is None:
        time = now
    elif time.tzinfo is None:
        raise PublishError(
            f"the timestamp of a message must be aware, such as datetime.now(UTC); it is {time!r}"
        )
    elif time.tzinfo is not UTC:
        try:
            time = time.astimezone(UTC)
        except OverflowError as error:
            raise PublishError(f"the timestamp {time!r} is no time in UTC") from error
    return Message(
        message.topic,
        message.value,
        message.key,
        message.headers,
        message.partition,
        timestamp=time,
        id=identity if message.id is None else message.id,
    )


def _check(message: Message, max_bytes: int | None) -> None:
    if not isinstance(message, Message):
        raise PublishError(f"publish takes a Message, not {type(message).__name__}")
    value, key, headers = message.value, message.key, message.headers
    if type(value) is not bytes:
        raise PublishError(f"the value of a message must be bytes; it is {type(value).__name__}")
    if key is not None and type(key) is not bytes:
        raise PublishError(f"the key of a message must be bytes or None; it is {type(key).__name__}")
    try:
        check_name("the topic of a message", message.topic)
    except ConfigError as error:
        raise PublishError(str(error)) from None
    if message.id is not None:
        _check_text("the id of a message", message.id)
    if message.timestamp is not None and not isinstance(message.timestamp, datetime):
        raise PublishError(
            f"the timestamp of a message must be a datetime; it is {type(message.timestamp).__name__}"
        )
    if not isinstance(headers, Mapping):
        raise PublishError(f"the headers of a message must be a mapping; they are {type(headers).__name__}")
    size = len(value) + (len(key) if key else 0)
    if headers:
        size += sum(_check_header(name, text) for name, text in headers.items())
    if max_bytes is not None and size > max_bytes:
        raise MessageTooLarge(
            f"a message for {message.topic!r} has {size} bytes; this broker takes {max_bytes}"
        )


def _check_header(name: Any, text: Any) -> int:
    size = _check_text("the name of a header", name) + _check_text(f"the header {name!r}", text)
    if name.startswith(RESERVED_PREFIX):
        raise PublishError(
            f"the header {name!r} begins with {RESERVED_PREFIX!r}, which belongs to the drivers"
        )
    return size


def _check_text(what: str, text: Any) -> int:
    if not isinstance(text, str):
        raise PublishError(f"{what} must be a string; it is {type(text).__name__}")
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise PublishError(f"{what} is not text that UTF-8 can carry: {text!r}") from error
