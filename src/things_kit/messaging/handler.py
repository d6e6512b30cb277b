"""What a user writes: something that handles a message, and what may be wrapped around it."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

from things_kit.messaging.message import Message


@runtime_checkable
class Handler(Protocol):
    """Handles messages, one a call.

    Returning acknowledges the message. `Retry`, `Reject` and every other exception are answers as well:
    see `things_kit.messaging.outcomes`.
    """

    async def handle(self, message: Message) -> None:
        """Handle one message; called again with the same one when it fails or when the process dies."""


Handle: TypeAlias = Callable[[Message], Awaitable[None]]
"""One step of a pipeline: middleware, decoding and the handler itself all come down to this."""

Middleware: TypeAlias = Callable[[Handle], Handle]
"""Wraps a step into another; called once, at start."""

HandleBatch: TypeAlias = Callable[[list[Message]], Awaitable[None]]
"""Handles a list; raises BatchError for those that failed, anything else if all did."""


class HandlesPayload(Protocol):
    """An object whose `handle` takes what its first parameter says: a payload, a message, or a list of them."""

    @property
    def handle(self) -> Callable[..., Any]:
        """The method."""


AnyHandler: TypeAlias = Handler | HandlesPayload | Callable[..., Any]
"""An object with `handle`, an `async def` function, or a plain function, which runs in a thread."""
