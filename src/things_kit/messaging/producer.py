"""The contract of a producer."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from things_kit.messaging.message import Message


@runtime_checkable
class Producer(Protocol):
    """Publishes messages. Those of one key keep the order in which they were published."""

    async def publish(self, message: Message) -> None:
        """Publish one message; returns when the broker has confirmed it.

        Raises:
            PublishError: The message was refused; `MessageTooLarge` where it is too large.
            BrokerUnavailable: The broker stayed away for longer than `publish_timeout`.
            ClosedError: The producer was closed before.
        """

    async def publish_batch(self, messages: Sequence[Message]) -> None:
        """Publish many; returns when all are confirmed.

        Raises:
            PublishError: `failures` maps the index of each refused message to its error; the others are confirmed.
            ClosedError: The producer was closed before.
        """

    async def close(self) -> None:
        """Send what is waiting, then close. Closing twice is fine."""
