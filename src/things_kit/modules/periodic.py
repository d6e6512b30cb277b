"""Runs the functions and methods that `every` has marked."""

import functools
import inspect
import typing
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any

from things_kit.app.app import App
from things_kit.app.lifecycle import Hook, Lifecycle
from things_kit.app.parts import Invoke, name_of
from things_kit.engine.broker import Broker
from things_kit.engine.options import options_of
from things_kit.engine.threads import call_in_thread
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.policy import seconds
from things_kit.modules.application import Tick, TickArguments
from things_kit.modules.broker_module import GRACE
from things_kit.modules.decorated import (
    OWNER,
    Mistake,
    broker_of,
    nothing,
    owners_of,
    places_of,
    refuse_generator,
)
from things_kit.patterns.periodic import GROUP, Periodic


def periodic_of(app: App, ticks: Sequence[Tick]) -> list[Invoke]:
    """The parts that run what these ticks mark. One that cannot be is a part whose check says why."""
    return [part for tick in ticks for part in _parts(app, tick, ticks)]


def _parts(app: App, tick: Tick, ticks: Sequence[Tick]) -> Iterator[Invoke]:
    try:
        twin = next(each for each in ticks if each.spec.name == tick.spec.name)
        if twin is not tick:
            raise Mistake(
                f"{name_of(tick.function)} and {name_of(twin.function)} both run every so often as {tick.spec.name!r}: "
                "say name="
            )
        sections, provided = places_of(app)
        broker = broker_of(tick, sections)
        for owner in owners_of(tick, provided, "is to run every so often"):
            yield _part(tick, broker, owner)
    except Mistake as mistake:
        text = str(mistake)
        yield Invoke(nothing, tick.place, lambda: [text])


def _part(tick: Tick, broker: str, owner: type | None) -> Invoke:
    times, injected = _parameters(tick, owner)

    def begin(lifecycle: Lifecycle, broker: Broker, **found: Any) -> None:
        bound = tick.function if owner is None else functools.partial(tick.function, found.pop(OWNER))

        async def call(planned: datetime) -> None:
            function = functools.partial(bound, **found, **dict.fromkeys(times, planned))
            if inspect.iscoroutinefunction(tick.function):
                await function()
            elif inspect.isawaitable(result := await call_in_thread(function)):
                await result  # of a plain function that returns a coroutine, such as a decorated one

        _run(lifecycle, Periodic(broker, tick.spec, call, **tick.arguments), tick)

    named = inspect.Parameter.KEYWORD_ONLY
    asked: dict[str, Any] = {"lifecycle": Lifecycle, "broker": Annotated[Broker, broker]}
    if owner is not None:
        asked[OWNER] = owner
    parameters = [inspect.Parameter(each, named, annotation=kind) for each, kind in asked.items()]
    parameters += [each.replace(kind=named) for each in injected]
    function: Any = begin
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {each.name: each.annotation for each in parameters}
    function.__qualname__ = name_of(tick.function)
    return Invoke(function, tick.place, lambda: _mistakes(tick))


def _mistakes(tick: Tick) -> Iterator[str]:
    """What is wrong with its arguments, some of a consumer's."""
    who, known = name_of(tick.function), TickArguments.__annotations__
    for name in tick.arguments:
        if name not in known:
            yield f"{who}: every has no argument {name!r}; known are {', '.join(known)}"
            return
    arguments: Any = {"group": GROUP, **tick.arguments}
    try:
        options_of(tick.spec.topic, print, arguments)
    except ConfigError as error:
        yield f"{who}: {error}"


def _parameters(tick: Tick, owner: type | None) -> tuple[list[str], list[inspect.Parameter]]:
    """The names of those that get the planned time, and those that are injected."""
    refuse_generator(tick.function)
    try:
        hints = typing.get_type_hints(tick.function, include_extras=True)
    except (NameError, AttributeError, TypeError) as error:
        raise Mistake(
            f"a type in the signature of {name_of(tick.function)} cannot be found: {error}"
        ) from error
    found = [
        each.replace(annotation=hints.get(each.name, each.annotation))
        for each in inspect.signature(tick.function).parameters.values()
        if each.kind not in {each.VAR_POSITIONAL, each.VAR_KEYWORD}
    ][1 if owner is not None else 0 :]
    times = [each.name for each in found if each.annotation is datetime]
    return times, [each for each in found if each.name not in times]


def _run(lifecycle: Lifecycle, periodic: Periodic, tick: Tick) -> None:
    consumer = periodic.consumer
    lifecycle.append(
        Hook(
            on_start=periodic.start,
            on_stop=periodic.stop,
            watch=consumer.wait,
            start_timeout=None,  # `publish_timeout` bounds it, while the broker is away
            stop_timeout=seconds(consumer.options.drain_timeout, "drain_timeout") + GRACE,
            together=True,
            says=lambda: f"running {tick.spec.name} {tick.said} from {consumer.address}",
            tally=lambda: {"handled": consumer.handled, "given back": consumer.given_back},
            label=f"{tick.spec.name}, which runs every so often",
        )
    )
