"""What is done to a message's value on its way to the broker, and undone on the way to the handler."""

import secrets
from collections.abc import Awaitable, Iterable, Sequence
from inspect import iscoroutinefunction
from typing import Any, Protocol, TypeAlias, runtime_checkable

from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message
from things_kit.messaging.names import CONTENT_ENCODING, in_any_case

Applied: TypeAlias = tuple[Message, str] | None
"""The message with its new value, and the token that says how to undo that; None where it is left as it is."""


@runtime_checkable
class Transform(Protocol):
    """Changes a value and undoes that, by tokens in the header `content-encoding`; the engine keeps that header.

    Either method may be async, where something has to be stored or fetched.
    """

    @property
    def tokens(self) -> frozenset[str]:
        """Those that it can undo, in lower case."""

    @property
    def required(self) -> bool:
        """Whether a message without one of them is a `DecodeError`."""

    def apply(self, message: Message, /) -> Applied | Awaitable[Applied]:
        """Change the value of a message that is about to be published; it has its id.

        What it raises is an outage, of its store such as: the message is tried again.
        """

    def undo(self, message: Message, token: str, /) -> Message | Awaitable[Message]:
        """Bring back the value. Raises DecodeError where that is not possible, Unprepared where it has to wait."""


def checked_transforms(transforms: object) -> tuple[Transform, ...]:
    """The transforms as a tuple. Raises ConfigError for what is none."""
    if not isinstance(transforms, Iterable) or isinstance(transforms, str | bytes):
        raise ConfigError(f"transforms is a list: write transforms=[{transforms!r}]")
    checked = tuple(transforms)
    for each in checked:
        if isinstance(each, type) or not isinstance(each, Transform):
            raise ConfigError(f"a transform is what compress, encrypt or claim_check return, not {each!r}")
    return checked


def topic_transforms(topic: str, transforms: object) -> tuple[Transform, ...]:
    """Those of a topic, which makes its messages without waiting for anything. Raises ConfigError."""
    checked = checked_transforms(transforms)
    for each in checked:
        if iscoroutinefunction(each.apply):
            raise ConfigError(
                f"the topic {topic!r} cannot use {type(each).__name__}, which has to wait for a store: "
                "say transforms= of the producer and the consumer"
            )
    return checked


def with_id(message: Message) -> Message:
    """The message with an id, to which a transform may bind its value."""
    return message if message.id is not None else message.replace(id=secrets.token_hex(12))


def transformed(message: Message, transforms: Sequence[Any]) -> Message:
    """A topic's message, changed from left to right."""
    message = with_id(message)
    for transform in transforms:
        message = encoded(message, transform.apply(message))
    return message


def encoded(message: Message, applied: Applied) -> Message:
    """The message as a transform left it, with its token behind those that are there."""
    if applied is None:
        return message
    changed, token = applied
    before = in_any_case(changed.headers, CONTENT_ENCODING)
    return encoding(changed, f"{before}, {token}" if before else token)


def encoding(message: Message, text: str) -> Message:
    """The message with this content encoding; none where it is empty."""
    headers = {name: value for name, value in message.headers.items() if name.lower() != CONTENT_ENCODING}
    if text:
        headers[CONTENT_ENCODING] = text
    return message.replace(headers=headers)
