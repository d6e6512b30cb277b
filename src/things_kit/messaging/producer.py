"""The contract of a producer."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypedDict, TypeVar, overload, runtime_checkable

from things_kit.messaging.keys import Key
from things_kit.messaging.message import Message
from things_kit.messaging.policy import Seconds
from things_kit.messaging.topic import UNSET, Topic, Unset

T = TypeVar("T")


class Fields(TypedDict, total=False):
    """What may be said of a Topic's message beside its payload, as `Topic.message` takes it."""

    key: Key | Unset
    headers: Mapping[str, str] | None
    id: str | None
    timestamp: datetime | None


@runtime_checkable
class Producer(Protocol):
    """Publishes messages. Those of one key keep the order in which they were published."""

    @overload
    async def publish(
        self,
        message: Message,
        *,
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
    ) -> None: ...

    @overload
    async def publish(
        self,
        topic: Topic[T],
        payload: T,
        /,
        *,
        key: Key | Unset = UNSET,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,
        timestamp: datetime | None = None,
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
    ) -> None: ...

    async def publish(
        self,
        message: Message | Topic[Any],
        payload: Any = UNSET,
        *,
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
        **fields: Any,
    ) -> None:
        """Publish one message, or the payload of one by its topic's contract; returns when the broker has confirmed it.

        With `after` (seconds, or a `timedelta`) or `at` the broker keeps it until then, whatever happens to this process; what has the
        `schedule_id` of a message that still waits in that topic replaces it.

        Raises:
            ConfigError: The time is none, or both are given, or a `schedule_id` without one.
            UnsupportedError: The broker cannot keep it until then, or knows no `schedule_id`.
            PublishError: The message was refused; `MessageTooLarge` where it is too large.
            BrokerUnavailable: The broker stayed away for longer than `publish_timeout`.
            ClosedError: The producer was closed before.
            TypeError: The payload is not of the topic's type.
        """

    async def publish_batch(
        self, messages: Sequence[Message], *, after: Seconds | None = None, at: datetime | None = None
    ) -> None:
        """Publish many, all of them for the same time where one is given; returns when all are confirmed.

        Raises:
            ConfigError, UnsupportedError: As for `publish`.
            PublishError: `failures` maps the index of each refused message to its error; the others are confirmed.
            ClosedError: The producer was closed before.
        """

    async def close(self) -> None:
        """Send what is waiting, then close. Closing twice is fine."""


def message_to_publish(
    message: Message | Topic[Any], payload: Any, fields: Mapping[str, Any], call: str = "publish"
) -> Message:
    """What `publish`, or another `call`, was asked to publish. Raises TypeError where its arguments do not go together."""
    for name in fields:
        if name not in Fields.__annotations__:
            raise TypeError(f"{call} has no argument {name!r}")
    if isinstance(message, Topic):
        if payload is UNSET:
            raise TypeError(f"{call}({message!r}) needs a payload")
        return message.message(payload, **fields)
    if payload is UNSET and not fields:
        return message
    if not isinstance(message, Message):
        raise TypeError(
            f"{call} takes a Message, or a Topic and a payload, not {type(message).__name__}: "
            f'{call}(Message("orders", b"..."))'
        )
    what = "a payload" if payload is not UNSET else f"{next(iter(fields))}="
    raise TypeError(f"{call} takes {what} for a Topic alone; a Message says it itself")
