"""The app and the module that a user makes: those of the application kit, and decorators that make functions consumers."""

from __future__ import annotations  # what an app does not need to be described is not imported for its types

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    TypedDict,
    TypeVar,
    overload,
)

from things_kit.app import app as kit
from things_kit.app import parts
from things_kit.app.lifecycle import STOP_TIMEOUT
from things_kit.app.parts import Part, Place, caller

if TYPE_CHECKING:
    from datetime import timedelta
    from typing import Unpack

    from things_kit.app.wiring import Graph
    from things_kit.engine.options import SectionArguments
    from things_kit.messaging.message import Message
    from things_kit.messaging.policy import Discard, RetryPolicy, Seconds
    from things_kit.messaging.topic import Topic
    from things_kit.patterns.outbox.relay import Relay
    from things_kit.patterns.periodic import Every

CONSUMES: Final = "__things_kit_consumes__"
"""The attribute of an invoked function that says what it consumes."""

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class TickArguments(TypedDict, total=False):
    """What `every` takes as a consumer does."""

    retry: RetryPolicy
    dead_letter: str | Discard | None
    timeout: Seconds | None


class Mark:
    """That a function, or a method, handles what a topic brings. Made by `on`."""

    def __init__(
        self,
        function: Callable[..., Any],
        topic: Any,
        broker: str | None,
        arguments: SectionArguments,
        place: Place,
    ) -> None:
        self.function = function
        self.topic = topic
        self.broker = broker
        self.arguments = arguments
        self.place = place


class Tick:
    """That a function, or a method, runs every so often. Made by `every`."""

    def __init__(
        self,
        function: Callable[..., Any],
        spec: Every,
        said: str,
        broker: str | None,
        arguments: dict[str, Any],
        place: Place,
    ) -> None:
        self.function = function
        self.spec = spec
        self.said = said
        self.broker = broker
        self.arguments = arguments
        self.place = place


class Handles(Generic[T]):
    """A decorator of what handles one topic's payloads; its first parameter is one, the others are injected."""

    def __init__(self, mark: Callable[[Any], None]) -> None:
        self._mark = mark

    @overload
    def __call__(self, function: Callable[Concatenate[T, P], R], /) -> Callable[Concatenate[T, P], R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Message, P], R], /
    ) -> Callable[Concatenate[Message, P], R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[bytes, P], R], /
    ) -> Callable[Concatenate[bytes, P], R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[str, P], R], /) -> Callable[Concatenate[str, P], R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[dict[str, Any], P], R], /
    ) -> Callable[Concatenate[dict[str, Any], P], R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[list[T], P], R], /
    ) -> Callable[Concatenate[list[T], P], R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, T, P], R], /
    ) -> Callable[Concatenate[Any, T, P], R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, Message, P], R], /
    ) -> Callable[Concatenate[Any, Message, P], R]: ...

    def __call__(self, function: Any, /) -> Any:
        """Mark the function, and return it unchanged."""
        self._mark(function)
        return function


class Decorators:
    """What an app and a module have in common: functions that were marked as handlers."""

    marks: list[Mark]
    ticks: list[Tick]

    @overload
    def on(
        self, topic: Topic[T], *, broker: str | None = None, **arguments: Unpack[SectionArguments]
    ) -> Handles[T]: ...

    @overload
    def on(
        self,
        topic: str | Sequence[str | Topic[Any]],
        *,
        broker: str | None = None,
        **arguments: Unpack[SectionArguments],
    ) -> Callable[[F], F]: ...

    def on(self, topic: Any, *, broker: str | None = None, **arguments: Any) -> Any:
        """Let a function handle what a topic brings: a decorator, which returns the function unchanged.

        Its first parameter gets the payload, one that is annotated `Message` the message; further ones are injected by
        type, as in a constructor. On a method it marks the method: any provided class whose body has it is used.
        What is wrong with it, `app.check()` finds, and the start.

        Args:
            topic: A topic by its name or its contract, or several.
            broker: The module of the broker, where the app has several.
            arguments: Those of `broker.consumer`. What is not given is as the broker's section says, the group included.

        Raises:
            ConfigError: It was written without a topic, so that it would decorate nothing.
        """
        if callable(topic):
            from things_kit.messaging.errors import ConfigError  # noqa: PLC0415 - for mistakes only

            raise ConfigError(
                f'on takes a topic, and was given {parts.name_of(topic)}: write on("orders", group="billing") above it'
            )
        place = caller()

        def mark(function: Callable[..., Any]) -> None:
            self.marks.append(Mark(function, topic, broker, arguments, place))  # type: ignore[arg-type] # are checked later

        return Handles[Any](mark)

    def every(
        self,
        when: str | timedelta,
        *,
        tz: str = "UTC",
        name: str | None = None,
        overlap: Literal["skip", "queue", "allow"] = "skip",
        catch_up: Literal["one", "all", "none"] = "one",
        broker: str | None = None,
        **arguments: Unpack[TickArguments],
    ) -> Callable[[F], F]:
        """Run a function every so often, once in the whole group of processes: a decorator, which returns it unchanged.

        Each planned time is a message: it is handled at least once, tried again, and ends in a dead letter. A parameter
        that is annotated `datetime` gets the planned time, further ones are injected by type. On a method it marks the
        method: any provided class whose body has it is used.

        Args:
            when: A cron expression, or an interval, which counts from 1970.
            tz: The time zone of the cron expression.
            name: Its identity in all processes and over all deployments; else the function's qualified name.
            overlap: What becomes of a planned time that comes while the run before still goes on.
            catch_up: Which of the planned times are made up for that were missed while no process was there: the latest
                "one", "all" or "none".
            broker: The module of the broker, where the app has several.
            arguments: As for a consumer: retry, dead_letter, timeout.

        Raises:
            ConfigError: The expression, the zone or a word is wrong, or the name is another's.
        """
        from things_kit.patterns.periodic import every  # noqa: PLC0415 - of those who use it

        place = caller()

        def mark(function: F) -> F:
            known_as = parts.name_of(function) if name is None else name
            spec = every(when, tz=tz, name=known_as, overlap=overlap, catch_up=catch_up)
            if any(each.spec.name == spec.name for each in self.ticks):
                from things_kit.messaging.errors import ConfigError  # noqa: PLC0415 - for mistakes only

                raise ConfigError(f"there is another {spec.name!r} that runs every so often: say name=")
            said = f"at {when} {tz}" if isinstance(when, str) else f"every {when}"
            self.ticks.append(Tick(function, spec, said, broker, {**arguments}, place))
            return function

        named = "nameless" if name is None else name
        every(when, tz=tz, name=named, overlap=overlap, catch_up=catch_up)  # what is wrong shows here
        return mark


class App(Decorators, kit.App):
    """An application, put together from modules, providers and functions to call at start.

    `run()` runs it until a signal; `async with app:` runs it inside a test, `app.lifespan` inside a web framework.
    What is given to `App` is resolved by type when it starts; one app may be started again after it has stopped.
    `@app.on(topic, group=...)` adds a consumer, `@app.every(...)` something that runs every so often.

    Attributes:
        parts: What it was given.
        marks: The functions that were marked by `on`.
        ticks: Those that were marked by `every`.
        published: The topics of `publishes`.
        worker: Which of the workers of `things-kit run --workers N` it runs in, from 1.
    """

    def __init__(self, *parts: Part | Relay, stop_timeout: float = STOP_TIMEOUT) -> None:
        """Put an app together; nothing is made or checked before it starts.

        Args:
            parts: Modules, what `provide` and `invoke` return, and relays of an outbox.
            stop_timeout: The most seconds that stopping one hook may take that does not say itself.
        """
        super().__init__(*map(_as_part, parts), stop_timeout=stop_timeout)
        self.marks = []
        self.ticks = []
        self.published: list[Topic[Any]] = []

    def publishes(self, *topics: Topic[Any]) -> None:
        """Say what code of this app publishes, for `asyncapi`; what consumers publish by `publish=` is known."""
        self.published += topics

    def asyncapi(self, title: str = "application", version: str = "0.0.0") -> dict[str, Any]:
        """The AsyncAPI 3.0 document of what it consumes and publishes. Needs no configuration and no connection."""
        from things_kit.modules.described import described  # noqa: PLC0415 - needs an extra, as brokers do

        return described(self, title, version)

    def all_marks(self) -> Iterator[Mark]:
        """Those of the app itself, and of all its modules."""
        yield from self.marks
        for module in dict.fromkeys(parts.modules_in(self.parts)):
            if isinstance(module, Module):
                yield from module.marks

    def all_ticks(self) -> Iterator[Tick]:
        """What runs every so often, of the app itself and of all its modules."""
        yield from self.ticks
        for module in dict.fromkeys(parts.modules_in(self.parts)):
            if isinstance(module, Module):
                yield from module.ticks

    def _graph(self, given: dict[type, Any], more: Sequence[Part] = ()) -> Graph:
        made: list[Part] = [*more]
        if marks := list(self.all_marks()):
            from things_kit.modules.decorated import consumers_of  # noqa: PLC0415 - needs an extra, as brokers do

            made += consumers_of(self, marks)
        if ticks := list(self.all_ticks()):
            from things_kit.modules.periodic import periodic_of  # noqa: PLC0415 - as above

            made += periodic_of(self, ticks)
        return super()._graph({**given, App: self}, made)


class Module(Decorators, parts.Module):
    """Parts under a name, to which `@module.on(topic, group=...)` adds consumers. Made by `module`."""

    def __init__(self, name: str, parts: Sequence[Part | Relay], place: Place) -> None:
        super().__init__(name, [_as_part(part) for part in parts], place)
        self.marks = []
        self.ticks = []


def module(name: str, *parts: Part | Relay) -> Module:
    """Parts under a name: give it to an `App`, or to another module. Giving it twice is fine."""
    return Module(name, parts, caller())


def _as_part(part: Part | Relay) -> Part:
    known = sys.modules.get("things_kit.patterns.outbox.relay")  # who has a relay has imported it
    if known is None or not isinstance(part, known.Relay):
        return part  # type: ignore[return-value] # it is no relay
    from things_kit.modules.relays import RelayPart  # noqa: PLC0415 - of those who use it

    return RelayPart(part)
