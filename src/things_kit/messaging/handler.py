"""What a user writes: something that handles a message, and what may be wrapped around it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Concatenate, Protocol, TypeAlias, TypeVar, runtime_checkable

from things_kit.messaging.message import Message

T_contra = TypeVar("T_contra", contravariant=True)
P = TypeVar("P")


@runtime_checkable
class Handler(Protocol):
    """Handles messages, one a call.

    Returning acknowledges the message. `Retry`, `Reject` and every other exception are answers as well:
    see `things_kit.messaging.outcomes`.
    """

    async def handle(self, message: Message) -> None:
        """Handle one message; called again with the same one when it fails or when the process dies."""


class ChecksTopics:
    """A handler that wants to see, before it handles any, what topics its messages come from."""

    def check_topics(self, topics: Sequence[Any]) -> None:
        """Look at the names and contracts that a consumer was given. Raises ConfigError where it cannot handle them."""
        raise NotImplementedError


@runtime_checkable
class HasState(Protocol):
    """Middleware that says in a word how it is: its consumer's health and metrics have it."""

    @property
    def name(self) -> str:
        """What it is called there."""

    @property
    def state(self) -> str:
        """One of a few words. It may be asked for in any thread."""


@runtime_checkable
class FillsParameters(Protocol):
    """Middleware that gives handlers what they ask for by the types of their parameters."""

    def provides(self) -> Mapping[type, Callable[[], Any]]:
        """By type, what a handler's parameter of that type is filled with, at each call."""


Handle: TypeAlias = Callable[[Message], Awaitable[None]]
"""One step of a pipeline: middleware, decoding and the handler itself all come down to this."""

Middleware: TypeAlias = Callable[[Handle], Handle]
"""Wraps a step into another; called once, at start.

Middleware may have two methods more. `handle_batch(next)` wraps the handling of a list. `bind(consumer)`, which may be async,
is called before, with the `Bound` that it will see messages of: it may raise ConfigError, and may return middleware of this
consumer's own, which is used in its place.
"""


class WrapsHandling(Protocol):
    """Middleware that is an object: the base by which mypy knows that a list of several is one of middleware."""

    def __call__(self, handle: Handle, /) -> Handle:
        """The step that this makes of another."""


HandleBatch: TypeAlias = Callable[[list[Message]], Awaitable[None]]
"""Handles a list; raises BatchError for those that failed, anything else if all did."""


class HandlesPayload(Protocol):
    """An object whose `handle` takes what its first parameter says: a payload, a message, or a list of them."""

    @property
    def handle(self) -> Callable[..., Any]:
        """The method."""


AnyHandler: TypeAlias = Handler | HandlesPayload | Callable[..., Any]
"""An object with `handle`, an `async def` function, or a plain function, which runs in a thread."""


class Takes(Protocol[T_contra]):
    """An object whose `handle` takes one of these."""

    def handle(self, payload: T_contra, /) -> Any:
        """Handle it."""


class TakesBoth(Protocol[T_contra]):
    """An object whose `handle` takes one of these, and its message."""

    def handle(self, payload: T_contra, message: Message, /) -> Any:
        """Handle it."""


# Further parameters are the message, and what middleware fills, such as an inbox's session: the start looks at them
_Handles: TypeAlias = Callable[Concatenate[P, ...], Any] | Takes[P] | TakesBoth[P]

TopicHandler: TypeAlias = (
    _Handles[P]
    | _Handles[bytes]
    | _Handles[str]
    | _Handles[dict[str, Any]]
    | Callable[[Message], Any]
    | Takes[Message]
)
"""What handles the messages of a topic whose payloads are P: it takes P or a wider type, or what every message has."""

TopicBatchHandler: TypeAlias = (
    Callable[[list[P]], Any]
    | Takes[list[P]]
    | Callable[[list[bytes]], Any]
    | Callable[[list[str]], Any]
    | Callable[[list[dict[str, Any]]], Any]
    | Callable[[list[Message]], Any]
    | Takes[list[Message]]
)
"""The same with `batch=`."""
