"""Makes consumers of the functions and methods that `on` has marked."""

import functools
import inspect
import typing
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Annotated, Any, Final, NamedTuple

from things_kit.app.app import App
from things_kit.app.lifecycle import Lifecycle
from things_kit.app.parts import Invoke, Provide, name_of
from things_kit.app.settings import Section
from things_kit.engine.broker import Broker
from things_kit.engine.fitting import provided_by
from things_kit.engine.unrun import yields
from things_kit.messaging.message import Message
from things_kit.modules.application import Mark, Tick
from things_kit.modules.broker_module import make_consumer, mistakes_of, run
from things_kit.modules.broker_settings import BrokerSettings

OWNER: Final = "handler_of"
"""The parameter that gets the object whose method is marked."""


def consumers_of(app: App, marks: Sequence[Mark]) -> list[Invoke]:
    """The parts that consume for these marks. One that cannot be is a part whose check says why."""
    sections, provided = places_of(app)
    return [part for mark in marks for part in _parts(mark, sections, provided)]


def places_of(app: App) -> tuple[dict[str, type], list[type]]:
    """The settings of the app's brokers by the names of their sections, and the classes that it provides."""
    sections = {
        placed.part.name: placed.part.kind
        for placed in app
        if isinstance(placed.part, Section) and issubclass(placed.part.kind, BrokerSettings)
    }
    provided = [
        placed.part.source
        for placed in app
        if isinstance(placed.part, Provide) and isinstance(placed.part.source, type)
    ]
    return sections, provided


def _parts(mark: Mark, sections: dict[str, type], provided: Sequence[type]) -> Iterator[Invoke]:
    try:
        name = broker_of(mark, sections)
        owners = owners_of(mark, provided, f"is to handle {mark.topic!r}")
        middleware = mark.arguments.get("middleware", ())
        fills = provided_by(middleware) if isinstance(middleware, Sequence) else ()  # else its check says so
        for owner in owners:
            yield _part(mark, name, sections[name], Shape.of(mark.function, owner, fills))
    except Mistake as mistake:
        text = str(mistake)
        yield Invoke(nothing, mark.place, lambda: [text])


class Mistake(Exception):
    """Why a mark cannot be what it is to be: a sentence."""


def refuse_generator(function: Callable[..., Any]) -> None:
    """Raise Mistake for what would make a generator that nobody iterates."""
    if yields(function):
        raise Mistake(
            f"{name_of(function)} is a generator, so nothing of it would run: it must return, not yield"
        )


def nothing() -> None:
    """Stands in for what could not be made; its check says why."""


def broker_of(mark: Mark | Tick, sections: dict[str, type]) -> str:
    """The name of the broker's section that it says, or of the only one. Raises Mistake."""
    who, verb = name_of(mark.function), "consume from" if isinstance(mark, Mark) else "run on"
    if mark.broker is not None:
        if mark.broker not in sections:
            known = (
                f"there {'are' if len(sections) > 1 else 'is'} {', '.join(sections)}"
                if sections
                else "it has none"
            )
            raise Mistake(f"{who} is to {verb} {mark.broker!r}, which is no broker of this app; {known}")
        return mark.broker
    if len(sections) != 1:
        what = (
            "none: add its module to the App"
            if not sections
            else f"{', '.join(sections)}: say broker={next(iter(sections))!r}"
        )
        raise Mistake(f"{who} needs one broker, and the app has {what}")
    return next(iter(sections))


def owners_of(mark: Mark | Tick, provided: Sequence[type], purpose: str) -> list[type | None]:
    """The provided classes whose method it is; None alone for a function."""
    within, _, _ = mark.function.__qualname__.rpartition(".")
    if not within or within.endswith("<locals>"):
        return [None]
    found = [
        kind
        for kind in provided
        if inspect.getattr_static(kind, mark.function.__name__, None) is mark.function
    ]
    if not found:
        raise Mistake(
            f"nothing provides {within.rpartition('<locals>.')[2]}, whose method {mark.function.__name__} {purpose}"
        )
    return list(dict.fromkeys(found))


class Shape(NamedTuple):
    """The parameters of a handler: the payload's, the message's if it wants that, what middleware fills, what is injected."""

    function: Callable[..., Any]
    owner: type | None
    payload: inspect.Parameter
    message: str | None
    filled: tuple[inspect.Parameter, ...]
    injected: tuple[inspect.Parameter, ...]

    @classmethod
    def of(cls, function: Callable[..., Any], owner: type | None, fills: Container[object] = ()) -> "Shape":
        """Read a function, or the method of a class; `fills` are the types that middleware fills. Raises Mistake."""
        refuse_generator(function)
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except (NameError, AttributeError, TypeError) as error:
            raise Mistake(
                f"a type in the signature of {name_of(function)} cannot be found: {error}; it must be importable where it "
                "is used, not only for type checkers"
            ) from error
        parameters = [
            each.replace(annotation=hints.get(each.name, each.annotation))
            for each in inspect.signature(function).parameters.values()
            if each.kind not in {each.VAR_POSITIONAL, each.VAR_KEYWORD}
        ][1 if owner is not None else 0 :]
        if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
            raise Mistake(
                f"the handler {name_of(function)} takes no parameter; it must take the message or its payload"
            )
        payload, *others = parameters
        message = next((each.name for each in others if each.annotation is Message), None)
        rest = [each for each in others if each.name != message]
        filled = tuple(
            each for each in rest if isinstance(each.annotation, type) and each.annotation in fills
        )
        injected = tuple(each for each in rest if each not in filled)
        return cls(function, owner, payload, message, filled, injected)

    def handler(self, owner: Any, injected: dict[str, Any]) -> Callable[..., Any]:
        """A function of the payload, of the message, and of what middleware fills, that calls this one."""
        function = self.function if self.owner is None else functools.partial(self.function, owner)
        named = self.message

        def arguments(message: Sequence[Message]) -> dict[str, Any]:
            return injected if named is None else {**injected, named: message[0]}

        call: Any
        if inspect.iscoroutinefunction(self.function):

            async def call(payload: Any, *message: Message, **filled: Any) -> Any:
                return await function(payload, **arguments(message), **filled)

        else:

            def call(payload: Any, *message: Message, **filled: Any) -> Any:
                return function(payload, **arguments(message), **filled)

        call.__qualname__ = call.__name__ = name_of(self.function)
        call.__signature__, call.__wrapped__ = self.signature, self.function
        made: Callable[..., Any] = call
        return made

    @property
    def signature(self) -> inspect.Signature:
        """What the engine sees."""
        kind = inspect.Parameter.POSITIONAL_ONLY
        seen = [inspect.Parameter("payload", kind, annotation=self.payload.annotation)]
        if self.message is not None:
            seen.append(inspect.Parameter("message", kind, annotation=Message))
        seen += [each.replace(kind=each.KEYWORD_ONLY) for each in self.filled]
        return inspect.Signature(seen)


def _part(mark: Mark, name: str, settings: type, shape: Shape) -> Invoke:
    def consume(lifecycle: Lifecycle, broker: Broker, settings: BrokerSettings, **found: Any) -> None:
        handler = shape.handler(found.pop(OWNER, None), found)
        run(lifecycle, make_consumer(name, broker, mark.topic, handler, settings, mark.arguments))

    named = inspect.Parameter.KEYWORD_ONLY
    asked: dict[str, Any] = {
        "lifecycle": Lifecycle,
        "broker": Annotated[Broker, name],
        "settings": Annotated[settings, name],
    }
    if shape.owner is not None:
        asked[OWNER] = shape.owner
    parameters = [inspect.Parameter(each, named, annotation=kind) for each, kind in asked.items()]
    parameters += [each.replace(kind=named) for each in shape.injected]
    function: Any = consume
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {each.name: each.annotation for each in parameters}
    function.__qualname__ = name_of(mark.function)
    checked = shape.handler(None, {})
    return Invoke(
        function, mark.place, lambda: mistakes_of(name_of(mark.function), mark.topic, checked, mark.arguments)
    )
