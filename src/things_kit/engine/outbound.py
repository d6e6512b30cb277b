"""Makes messages fit to be sent: checked, and with an id and a time."""

import secrets
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Final

from things_kit.engine.dead_letter import is_dead_letter, text_of
from things_kit.engine.driver import RESERVE
from things_kit.engine.naming import check_name
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError
from things_kit.messaging.message import RESERVED_PREFIX, Message
from things_kit.messaging.names import DEAD_LETTER_MARK
from things_kit.messaging.plain import plain, plain_time

FEW: Final = 10_000
"""So many messages go at once, however large, to a broker that takes as many."""

SMALL: Final = 8 * 2**20
"""Bytes up to which more of them do: each send has to be through in one `publish_timeout`, over a slow line, too."""


def checked_batch(messages: Sequence[Message]) -> list[Message]:
    """What `publish_batch` was given, as a list. Raises PublishError if it is none."""
    if isinstance(messages, Message) or not isinstance(messages, Iterable):
        raise PublishError(
            f"publish_batch takes a list of messages, not {type(messages).__name__}; publish takes one"
        )
    return list(messages)


def chunks(messages: Sequence[Message], most: int) -> Iterator[tuple[int, int]]:
    """Where that begins and ends which is sent at once, to a broker that takes `most` messages."""
    start = 0
    while start < len(messages):
        end = min(start + most, len(messages))
        if end - start > FEW:
            sizes = accumulate(map(_size, messages[start:end]))
            end = start + max(FEW, bisect_right(list(sizes), SMALL))
        yield start, end
        start = end


def _size(message: Message) -> int:
    """About how many bytes it has."""
    size = len(message.value) + len(message.key or b"")
    return size + sum(map(len, message.headers.values())) if message.headers else size


def prepare(
    messages: Sequence[Message], max_bytes: int | None, *, ours: bool = False
) -> tuple[list[Message], dict[int, Exception]]:
    """Messages with id and timestamp, and by index the errors of those that must not be sent.

    What is `ours` may be a dead letter, which may have a mark, and `RESERVE` bytes more.
    """
    now = datetime.now(UTC)
    batch = secrets.token_hex(12)  # one draw from the system's entropy for all; the index tells them apart
    topics: set[str] = set()
    names: set[str] = set()
    ready: list[Message] = []
    refused: dict[int, Exception] = {}
    for index, message in enumerate(messages):  # every line of this is paid for by each message
        try:
            size = _checked_size(message, topics, names, ours=ours)
            if max_bytes is not None and size > max_bytes:
                _check_large(message, size, max_bytes, ours=ours)
            time, identity = message.timestamp, message.id
            if time is None:
                time = now
            elif type(time) is not datetime or time.tzinfo is not UTC:
                time = _in_utc(time)
            if identity is None:
                identity = f"{batch}-{index}"
            ready.append(
                Message(
                    message.topic, message.value, message.key, message.headers, message.partition,
                    None, time, identity,
                )
            )  # fmt: skip
        except PublishError as error:
            refused[index] = error
        except _MoreThanTextError:
            one, reasons = _again(message, max_bytes, ours=ours)
            ready += one
            for why in reasons:
                refused[index] = why
        except Exception as error:  # noqa: BLE001 - of a mapping or a time zone of the user's; those beside it go
            refused[index] = _unreadable(error)
    return ready, refused


def _check_large(message: Message, size: int, max_bytes: int, *, ours: bool) -> None:
    if not (ours and size <= max_bytes + RESERVE and is_dead_letter(message)):
        raise MessageTooLarge(
            f"a message for {message.topic!r} has {size} bytes; this broker takes {max_bytes}"
        )


class _MoreThanTextError(Exception):
    """A topic, id or header is of a type derived from `str`, which few clients take for what it is."""


def _again(
    message: Message, max_bytes: int | None, *, ours: bool
) -> tuple[list[Message], Iterable[Exception]]:
    """The same message with plain text; it is ready, or there is an error."""
    headers = message.headers
    try:
        if isinstance(headers, Mapping):
            headers = {plain(name): plain(text) for name, text in headers.items()}
    except Exception as error:  # noqa: BLE001 - as in prepare
        return [], [_unreadable(error)]
    message = message.replace(topic=plain(message.topic), id=plain(message.id), headers=headers)
    ready, refused = prepare([message], max_bytes, ours=ours)
    return ready, refused.values()


def _unreadable(error: Exception) -> PublishError:
    unreadable = PublishError(f"a message could not be read: {type(error).__name__}: {text_of(error)}")
    unreadable.__cause__ = error
    return unreadable


def _in_utc(time: datetime) -> datetime:
    if not isinstance(time, datetime):
        raise PublishError(f"the timestamp of a message must be a datetime; it is {type(time).__name__}")
    if time.utcoffset() is None:
        raise PublishError(
            f"the timestamp of a message must be aware, such as datetime.now(UTC); it is {time!r}"
        )
    try:
        return plain_time(time)
    except (OverflowError, TypeError, ValueError) as error:
        raise PublishError(f"the timestamp {time!r} is no time in UTC") from error


def _checked_size(message: Message, topics: set[str], names: set[str], *, ours: bool) -> int:
    """The bytes of value, key and headers. `topics`, and `names` of headers in ASCII, are those that were found fine before.

    Every published message pays for these lines; what is not plainly right is looked at again, and named.
    """
    if type(message) is not Message and not isinstance(message, Message):
        raise PublishError(f"publish takes a Message, not {type(message).__name__}")
    topic, value, key, headers, identity = (
        message.topic, message.value, message.key, message.headers, message.id,
    )  # fmt: skip
    if type(topic) is not str or topic not in topics:
        _check_topic(topic)
        if type(topic) is not str:
            raise _MoreThanTextError
        topics.add(topic)
    if type(value) is not bytes:
        raise PublishError(f"the value of a message must be bytes; it is {type(value).__name__}")
    size = len(value)
    if key is not None:
        if type(key) is not bytes:
            raise PublishError(f"the key of a message must be bytes or None; it is {type(key).__name__}")
        size += len(key)
    if identity is not None:
        _check_text("the id of a message", identity)
    if not isinstance(headers, (dict, Mapping)):  # the first is quick, and the usual case
        raise PublishError(f"the headers of a message must be a mapping; they are {type(headers).__name__}")
    for name, text in headers.items():
        if type(name) is type(text) is str and name in names and text.isascii():
            size += len(name) + len(text)
        else:
            size += _check_header(name, text, names, ours=ours)
    return size


def _check_topic(topic: Any) -> None:
    try:
        check_name("the topic of a message", topic)
    except ConfigError as error:
        raise PublishError(str(error)) from None


def _check_header(name: Any, text: Any, names: set[str], *, ours: bool) -> int:
    size = _check_text("the name of a header", name) + _check_text(f"the header {name!r}", text)
    if name.startswith(RESERVED_PREFIX) and not (ours and name == DEAD_LETTER_MARK):
        raise PublishError(
            f"the header {name!r} begins with {RESERVED_PREFIX!r}, which belongs to the drivers"
        )
    if name.isascii():
        names.add(name)
    return size


def _check_text(what: str, text: Any) -> int:
    if type(text) is not str:
        if isinstance(text, str):
            raise _MoreThanTextError
        raise PublishError(f"{what} must be a string; it is {type(text).__name__}")
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise PublishError(f"{what} is not text that UTF-8 can carry: {text!r}") from error
