"""The middleware of one consumer: it is told whose messages it will see, and may fill its handler's parameters."""

import inspect
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from things_kit.engine.pipeline import NOTHING, Provides
from things_kit.messaging.consumer import Bound
from things_kit.messaging.handler import FillsParameters, HasState, Middleware
from things_kit.messaging.health import MiddlewareState


def provided_by(middleware: Sequence[object]) -> Provides:
    """What fills a handler's parameters, by type."""
    filling = [each.provides() for each in middleware if isinstance(each, FillsParameters)]
    if not filling:
        return NOTHING
    return MappingProxyType({kind: make for each in filling for kind, make in each.items()})


async def bound(middleware: Sequence[Middleware], consumer: Bound) -> list[Middleware]:
    """These, each told of its consumer; what is for this consumer alone takes the place of what made it.

    Raises ConfigError.
    """
    return [await _bound(each, consumer) for each in middleware]


async def _bound(each: Middleware, consumer: Bound) -> Middleware:
    bind: Any = getattr(each, "bind", None)
    if not callable(bind):
        return each
    own = bind(consumer)
    if inspect.isawaitable(own):
        own = await own
    return each if own is None else own


def states_of(middleware: Sequence[object]) -> tuple[MiddlewareState, ...]:
    """How these are, where they say so."""
    return tuple(
        MiddlewareState(each.name, each.state)
        for each in middleware
        if isinstance(each, HasState) and isinstance(each.name, str) and isinstance(each.state, str)
    )
