"""One handler for each type of message."""

from collections.abc import Callable
from typing import TypeVar

from things_kit.engine.pipeline import compile_handler, name_of
from things_kit.messaging.errors import ConfigError, UnroutableError
from things_kit.messaging.handler import AnyHandler, Handle
from things_kit.messaging.message import Message

HandlerT = TypeVar("HandlerT", bound=AnyHandler)


class MessageRouter:
    """Hands each message to the handler of its type; a router is a handler itself.

    Args:
        by: The header that names the type.
        default: Handles what has no type or one without a handler; without it, that is an `UnroutableError`,
            which is permanent: the message goes to the dead letter at once.
    """

    def __init__(self, by: str = "type", default: AnyHandler | None = None) -> None:
        self.by = by
        self._default = None if default is None else compile_handler(default)
        self._routes: dict[str, tuple[Handle, str]] = {}  # by type: the handler, and its name for errors

    def register(self, message_type: str, handler: AnyHandler) -> None:
        """Hand messages of this type to this handler. Raises ConfigError for a type that has one."""
        if not isinstance(message_type, str):
            raise ConfigError(f"a message type is a string, not {message_type!r}")
        if message_type in self._routes:
            raise ConfigError(
                f"the type {message_type!r} is registered twice: "
                f"for {self._routes[message_type][1]} and for {name_of(handler)}"
            )
        self._routes[message_type] = (compile_handler(handler), name_of(handler))

    def on(self, *message_types: str) -> Callable[[HandlerT], HandlerT]:
        """Decorate a handler of these types. Raises ConfigError for a type that has one, or for none at all."""
        if not message_types:
            raise ConfigError("router.on needs at least one message type")

        def decorate(handler: HandlerT) -> HandlerT:
            for message_type in message_types:
                self.register(message_type, handler)
            return handler

        return decorate

    def include(self, other: "MessageRouter") -> None:
        """Take over another router's handlers, not its default. Raises ConfigError for a type that both have."""
        both = sorted(self.types & other.types)
        if both:
            raise ConfigError(f"both routers have a handler for {', '.join(map(repr, both))}")
        self._routes |= other._routes  # noqa: SLF001 - another of the same class

    @property
    def types(self) -> frozenset[str]:
        """The message types that have a handler."""
        return frozenset(self._routes)

    async def handle(self, message: Message) -> None:
        """Handle one message by its type. Raises UnroutableError where there is no handler and no default."""
        message_type = message.headers.get(self.by)
        route = None if message_type is None else self._routes.get(message_type)
        handle = self._default if route is None else route[0]
        if handle is None:
            raise UnroutableError(
                f"no handler for the type {message_type!r}"
                if message_type is not None
                else f"the message has no header {self.by!r} that names its type"
            )
        await handle(message)
