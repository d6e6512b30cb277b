"""Dead letters: how one is made of a message that failed for good, and the message made of it again."""

import logging
from datetime import UTC, datetime
from typing import Final

from things_kit.engine.verdict import ProcessDied
from things_kit.messaging import names
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message

log = logging.getLogger("things_kit.consumer")

ERROR_BYTES: Final = 1024
"""The most of an error's text that a dead letter carries."""

_OURS: Final = frozenset({
    names.ORIGINAL_TOPIC, names.ORIGINAL_PARTITION, names.ORIGINAL_OFFSET, names.ORIGINAL_TIMESTAMP,
    names.ORIGINAL_GROUP, names.CONSUMER_GROUP, names.ATTEMPTS, names.ERROR_TYPE, names.ERROR, names.TIMESTAMP,
})  # fmt: skip
_LEFT_OUT_FIRST: Final = (
    names.ERROR, names.ERROR_TYPE, names.TIMESTAMP, names.ATTEMPTS,
    names.ORIGINAL_TIMESTAMP, names.ORIGINAL_OFFSET, names.ORIGINAL_PARTITION, names.ORIGINAL_GROUP,
)  # fmt: skip
_NEEDED: Final = (names.ORIGINAL_TOPIC, names.CONSUMER_GROUP)
_FIFO: Final = ".fifo"


def dead_letter_topic(template: str, topic: str, group: str) -> str:
    """The name of a topic's dead letter. A topic `x.fifo` has `x-dlq.fifo`, as SQS wants the ending.

    Raises:
        ConfigError: The template has a field other than `{topic}` and `{group}`, or names the topic itself.
    """
    stem = topic.removesuffix(_FIFO)
    try:
        name = template.format(topic=stem, group=group)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"dead_letter={template!r}: only the fields {{topic}} and {{group}} can be filled"
        ) from error
    if stem != topic and not name.endswith(_FIFO):
        name += _FIFO
    if not name or name == topic:
        raise ConfigError(
            f"dead_letter={template!r} names the topic {topic!r} itself; a dead letter needs its own topic"
        )
    return name


def is_dead_letter(message: Message) -> bool:
    """Whether a message is a dead letter, by its headers."""
    return names.DEAD_LETTER_MARK in message.headers or _says_whence(message)


def unmarked(message: Message) -> Message:
    """The message as a handler sees it, which is never shown the engine's own mark."""
    headers = {name: text for name, text in message.headers.items() if name != names.DEAD_LETTER_MARK}
    return message.replace(headers=headers)


def make_dead_letter(
    message: Message, *, topic: str, group: str, error: BaseException, limit: int | None = None
) -> Message:
    """The dead letter of a message: same value, key, id and headers, and why it failed.

    A dead letter that failed itself keeps where it came from first, and the group that it belongs to.
    Of its own headers it goes without as many as would make it larger than `limit`; the log has them.
    """
    again = _says_whence(message)
    dropped = {names.REPLAY_GROUP, names.DEAD_LETTER_MARK}
    if names.is_request(message.headers):  # its replay must not answer who has long gone
        dropped |= names.OF_A_REQUEST
    headers = {
        name if again or not _clashes(name) else names.ORIGINAL_HEADER + name: value
        for name, value in message.headers.items()
        if name not in dropped
    }
    if again:
        headers.setdefault(names.ORIGINAL_GROUP, headers[names.CONSUMER_GROUP])
    else:
        headers[names.ORIGINAL_TOPIC] = message.topic
        if message.partition is not None:
            headers[names.ORIGINAL_PARTITION] = str(message.partition)
        if message.offset is not None:
            headers[names.ORIGINAL_OFFSET] = str(message.offset)
        if message.timestamp is not None:
            headers[names.ORIGINAL_TIMESTAMP] = rfc3339(message.timestamp)
    headers[names.CONSUMER_GROUP] = group
    headers[names.ATTEMPTS] = str(message.attempt)
    headers[names.ERROR_TYPE] = qualified_name(error)
    headers[names.ERROR] = _shortened(text_of(error))
    headers[names.TIMESTAMP] = rfc3339(datetime.now(UTC))
    dead = Message(topic, message.value, message.key, headers, id=message.id)
    return dead if limit is None else _fitted(dead, limit)


def _fitted(dead: Message, limit: int) -> Message:
    """The dead letter without the headers for which there is no room: no message is too large to become one."""
    excess = message_bytes(dead) - limit
    if excess <= 0:
        return dead
    headers = dict(dead.headers)
    left_out: dict[str, str] = {}
    for name in _LEFT_OUT_FIRST:
        if excess > 0 and name in headers:
            left_out[name] = headers.pop(name)
            excess -= header_bytes(name, left_out[name])
    if excess > 0:
        left_out |= {name: headers[name] for name in _NEEDED}
        headers = _users(dead)
        marked = {**headers, names.DEAD_LETTER_MARK: ""}
        if message_bytes(dead.replace(headers=marked)) <= limit:
            headers = marked
    log.warning(
        "the dead letter of message %r has no room for these headers, as the broker takes %d bytes: %s",
        dead.id, limit, ", ".join(f"{name}={text!r}" for name, text in left_out.items()),
    )  # fmt: skip
    return dead.replace(headers=headers)


def message_bytes(message: Message) -> int:
    """The bytes of value, key and headers, which count towards the largest that a broker takes."""
    headers = sum(header_bytes(name, text) for name, text in message.headers.items())
    return len(message.value) + len(message.key or b"") + headers


def header_bytes(name: str, text: str) -> int:
    """The bytes of a header's name and value in UTF-8."""
    return len(name.encode()) + len(text.encode())


def revive(dead: Message, to: str | None = None) -> Message:
    """The message that a dead letter was, marked for the group that failed; or unmarked, for the topic `to`.

    Raises:
        ConfigError: It is no dead letter, or does not say where it came from, and `to` does not say where it belongs.
    """
    if not _says_whence(dead):
        if to is None:
            what = "does not say where it came from" if is_dead_letter(dead) else "is no dead letter"
            raise ConfigError(
                f"the message {dead.id!r} in {dead.topic!r} {what}; say with `to` where it goes"
            )
        headers = unmarked(dead).headers
        return Message(to, dead.value, dead.key, headers, timestamp=dead.timestamp, id=dead.id)
    headers = _users(dead)
    if to is None:
        headers[names.REPLAY_GROUP] = dead.headers.get(
            names.ORIGINAL_GROUP, dead.headers[names.CONSUMER_GROUP]
        )
    published = dead.headers.get(names.ORIGINAL_TIMESTAMP)
    return Message(
        to or dead.headers[names.ORIGINAL_TOPIC],
        dead.value,
        dead.key,
        headers,
        timestamp=_parsed(published) if published else None,
        id=dead.id,
    )


def _says_whence(message: Message) -> bool:
    return all(name in message.headers for name in _NEEDED)


def _users(dead: Message) -> dict[str, str]:
    """The headers that the message had before it became a dead letter."""
    return {
        name.removeprefix(names.ORIGINAL_HEADER) if _clashes(name) else name: value
        for name, value in dead.headers.items()
        if name not in _OURS
    }


def failed_at(dead: Message) -> datetime | None:
    """When a dead letter was made; None if it does not say so in RFC 3339."""
    return _parsed(dead.headers.get(names.TIMESTAMP, ""))


def rfc3339(time: datetime) -> str:
    """A time in RFC 3339, UTC."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def qualified_name(error: BaseException) -> str:
    """The qualified name of an exception's type, without a module where it is built in or the engine's own word."""
    kind = type(error)
    plain = kind.__module__ == "builtins" or kind is ProcessDied
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


def text_of(error: BaseException) -> str:
    """An exception's text; of one that cannot be printed, that it cannot."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever its __str__ does must not lose a message
        return f"a {qualified_name(error)} that cannot be printed"


def _clashes(name: str) -> bool:
    """Whether a user's header has a name of ours, or what we would make of one."""
    while name.startswith(names.ORIGINAL_HEADER):
        name = name.removeprefix(names.ORIGINAL_HEADER)
    return name in _OURS


def _shortened(text: str) -> str:
    return text.encode("utf-8", "replace")[:ERROR_BYTES].decode("utf-8", "ignore")


def _parsed(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
