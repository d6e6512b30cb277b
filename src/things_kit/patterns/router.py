"""One handler for each type of message."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, overload

from things_kit.engine.pipeline import compile_handler, name_of
from things_kit.messaging.errors import ConfigError, UnroutableError
from things_kit.messaging.handler import AnyHandler, ChecksTopics, Handle
from things_kit.messaging.message import Message
from things_kit.messaging.policy import DISCARD, Discard
from things_kit.messaging.topic import Topic

HandlerT = TypeVar("HandlerT", bound=AnyHandler)
P = TypeVar("P")
R = TypeVar("R")


class Registers(Protocol[P]):
    """Decorates a handler of payloads of one class; a type checker refuses one that takes another."""

    @overload
    def __call__(self, handler: Callable[[P], R], /) -> Callable[[P], R]: ...

    @overload
    def __call__(self, handler: Callable[[P, Message], R], /) -> Callable[[P, Message], R]: ...

    @overload
    def __call__(self, handler: Callable[[Message], R], /) -> Callable[[Message], R]: ...

    @overload
    def __call__(self, handler: Callable[[bytes], R], /) -> Callable[[bytes], R]: ...

    @overload
    def __call__(self, handler: Callable[[str], R], /) -> Callable[[str], R]: ...

    @overload
    def __call__(self, handler: Callable[[dict[str, Any]], R], /) -> Callable[[dict[str, Any]], R]: ...

    def __call__(self, handler: Any, /) -> Any:
        """Register it, and return it unchanged."""


class MessageRouter(ChecksTopics):
    """Hands each message to the handler of its type; a router is a handler itself.

    Args:
        by: The header that names the type.
        default: Handles what has no type or one without a handler; without it, that is an `UnroutableError`,
            which is permanent: the message goes to the dead letter at once. DISCARD skips it.
    """

    def __init__(self, by: str = "type", default: AnyHandler | Discard | None = None) -> None:
        self.by = by
        self._default = _compiled_default(default)
        self._routes: dict[str, tuple[Handle, str]] = {}  # by type: the handler, and its name for errors
        self._topic: Topic[Any] | None = None

    @classmethod
    def of(cls, topic: Topic[Any], default: AnyHandler | Discard | None = None) -> "MessageRouter":
        """A router for a topic of several types, whose handlers are registered by class.

        A type of the topic that no handler takes is a `ConfigError` when a consumer is made, unless there is a default.

        Raises:
            ConfigError: It is no topic of several types.
        """
        if not isinstance(topic, Topic) or topic.by is None:
            raise ConfigError(f"MessageRouter.of takes a Topic of several types, not {topic!r}")
        router = cls(topic.by, default)
        router._topic = topic
        return router

    def register(self, message_type: str | type, handler: AnyHandler) -> None:
        """Hand messages of this type to this handler: a value of the header, or a class of the topic.

        Raises:
            ConfigError: The type has a handler, or is none of the topic, or the handler takes another.
        """
        value = self._value(message_type)
        if value in self._routes:
            raise ConfigError(
                f"the type {value!r} is registered twice: "
                f"for {self._routes[value][1]} and for {name_of(handler)}"
            )
        topics = () if self._topic is None else (_narrowed(self._topic, value),)
        self._routes[value] = (compile_handler(handler, watched=True, topics=topics), name_of(handler))

    @overload
    def on(self, kind: type[P], /) -> Registers[P]: ...

    @overload
    def on(self, *message_types: str) -> Callable[[HandlerT], HandlerT]: ...

    @overload
    def on(self, *kinds: type[Any]) -> Callable[[HandlerT], HandlerT]: ...

    def on(self, *message_types: Any) -> Any:
        """Decorate a handler of these types: values of the header, or classes of the topic. Raises as `register` does."""
        if not message_types:
            raise ConfigError("router.on needs at least one message type")
        for each in message_types:
            if not isinstance(each, (str, type)):  # `@router.on` alone would decorate nothing
                raise ConfigError(
                    f'router.on takes types of messages, and was given {each!r}: write router.on("order.created") above it'
                )

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

    def check_topics(self, topics: Sequence[Any]) -> None:
        """See `ChecksTopics`: every type of the topic must have a handler. Raises ConfigError."""
        if self._topic is None:
            return
        for topic in topics:
            if isinstance(topic, Topic) and dict(topic.kinds) != dict(self._topic.kinds):
                raise ConfigError(f"the router is one of {self._topic!r}, and cannot handle {topic!r}")
        missing = [repr(value) for value in self._topic.kinds if value not in self._routes]
        if missing and self._default is None:
            raise ConfigError(
                f"the router of the topic {self._topic.name!r} has no handler for {', '.join(missing)}, and no default"
            )

    async def handle(self, message: Message) -> Any:
        """Handle one message by its type; returns what its handler did.

        Raises UnroutableError where there is no handler and no default.
        """
        message_type = message.headers.get(self.by)
        route = None if message_type is None else self._routes.get(message_type)
        handle = self._default if route is None else route[0]
        if handle is None:
            raise UnroutableError(
                f"no handler for the type {message_type!r}"
                if message_type is not None
                else f"the message has no header {self.by!r} that names its type"
            )
        return await handle(message)

    def _value(self, message_type: object) -> str:
        """The header's value of what a handler is registered for."""
        topic = self._topic
        if isinstance(message_type, str):
            if topic is not None and message_type not in topic.kinds:
                raise ConfigError(f"the topic {topic.name!r} has no type {message_type!r}")
            return message_type
        if not isinstance(message_type, type):
            raise ConfigError(f"a message type is a string, or a class of the topic, not {message_type!r}")
        if topic is None:
            raise ConfigError(
                f"{message_type.__qualname__} is a class; a router knows classes if made by MessageRouter.of(topic)"
            )
        for value, kind in topic.kinds.items():
            if kind is message_type and value is not None:
                return value
        raise ConfigError(f"the topic {topic.name!r} carries no {message_type.__qualname__}")


def _compiled_default(default: AnyHandler | Discard | None) -> Handle | None:
    if default is None:
        return None
    if default is DISCARD:
        return _skip
    assert not isinstance(default, Discard)  # noqa: S101 - there is but one
    return compile_handler(default, watched=True)


async def _skip(_: Message) -> None:
    """What nobody handles is acknowledged."""


def _narrowed(topic: Topic[Any], value: str) -> Topic[Any]:
    """The contract of the one type alone."""
    upcast = {value: topic.upcasters[value]} if value in topic.upcasters else {}
    return Topic(
        topic.name, {value: topic.kinds[value]}, by=topic.by or "", headers=topic.headers, codec=topic.codec,
        version=topic.version, upcast=upcast, accept_newer=topic.accept_newer,
    )  # fmt: skip
