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
        self._routes: dict[str, Handle] = {}
        self._names: dict[str, str] = {}

    def register(self, message_type: str, handler: AnyHandler) -> None:
        """Hand messages of this type to this handler. Raises ConfigError for a type that has one."""
        if not isinstance(message_type, str):
            raise ConfigError(f"a message type is a string, not {message_type!r}")
        self._add(message_type, compile_handler(handler), name_of(handler))

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
        for message_type in other._routes:
            self._refuse_second(message_type, other._names[message_type])
        for message_type, handle in other._routes.items():
            self._add(message_type, handle, other._names[message_type])

    async def handle(self, message: Message) -> None:
        """Handle one message by its type. Raises UnroutableError where there is no handler and no default."""
        message_type = message.headers.get(self.by)
        handle = self._default if message_type is None else self._routes.get(message_type, self._default)
        if handle is None:
            raise UnroutableError(
                f"no handler for the type {message_type!r}"
                if message_type is not None
                else f"the message has no header {self.by!r} that names its type"
            )
        await handle(message)

    def _add(self, message_type: str, handle: Handle, name: str) -> None:
        self._refuse_second(message_type, name)
        self._routes[message_type] = handle
        self._names[message_type] = name

    def _refuse_second(self, message_type: str, name: str) -> None:
        if message_type in self._routes:
            raise ConfigError(
                f"the type {message_type!r} is registered twice: for {self._names[message_type]} and for {name}"
            )
