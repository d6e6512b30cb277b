"""Reads what a class or function needs and gives, from its annotations."""

import functools
import inspect
import types
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from enum import Enum, auto
from typing import Annotated, Any, Final, NamedTuple

from things_kit.app.parts import name_of

STREAMS: Final = {AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator}


class Unreadable(Exception):
    """A class or function does not say what it needs or gives: a sentence."""


class Kind(Enum):
    """How something is made."""

    VALUE = auto()
    CALL = auto()
    ASYNC_CALL = auto()
    GENERATOR = auto()
    ASYNC_GENERATOR = auto()


class Need(NamedTuple):
    """One parameter that is to be filled.

    `owner` is the module that it must come from, None for any. `optional` is whether it may be left to its
    default, or be None (`nullable`), where nothing is found. `fits` says what is wrong with the type of what is found.
    """

    name: str
    asked: Any
    owner: str | None
    optional: bool
    nullable: bool
    positional: bool
    fits: Callable[[Any], str | None] | None = None


def kind_of(source: Any) -> Kind:
    """How to make something from it."""
    if isinstance(source, type):
        return Kind.CALL
    if not inspect.isroutine(source) and not isinstance(source, functools.partial):
        return Kind.VALUE
    function = inspect.unwrap(source.func if isinstance(source, functools.partial) else source)
    if inspect.isasyncgenfunction(function):
        return Kind.ASYNC_GENERATOR
    if inspect.isgeneratorfunction(function):
        return Kind.GENERATOR
    return Kind.ASYNC_CALL if inspect.iscoroutinefunction(function) else Kind.CALL


def yields(function: Any) -> bool:
    """Whether calling this makes a generator, so that nothing of it runs."""
    calls = (function, getattr(type(function), "__call__", None))  # noqa: B004 - it is looked at, not tested for
    return any(inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call) for call in calls)


async def finish(result: Any, what: str) -> None:
    """Await what a plain or async function has returned. Raises TypeError if that has yet to run even so."""
    if inspect.isawaitable(result):
        result = await result
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError(f"{what} returned a generator, so nothing of it ran: it must return, not yield")
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(f"{what} returned a coroutine that nobody awaits: write `return await ...`")


def given_by(source: Any) -> Any:
    """The type of what it makes. Raises Unreadable."""
    kind = kind_of(source)
    if kind is Kind.VALUE:
        return type(source)
    if isinstance(source, type):
        if inspect.isabstract(source) or getattr(source, "_is_protocol", False):
            raise Unreadable(f"{name_of(source)} is abstract: provide a class that can be made")
        return source
    result = _hints(source).get("return", inspect.Signature.empty)
    if kind in {Kind.GENERATOR, Kind.ASYNC_GENERATOR} and typing.get_origin(result) in STREAMS:
        result = typing.get_args(result)[0]
    if result in {inspect.Signature.empty, None, type(None), Any, object}:
        raise Unreadable(f"{name_of(source)} must say what it returns, such as `-> Database`")
    return result


def needs_of(source: Any) -> list[Need]:
    """Its parameters, but those of `*args` and `**kwargs`. Raises Unreadable."""
    if kind_of(source) is Kind.VALUE or _takes_nothing(source):
        return []
    try:
        parameters = [
            parameter
            for parameter in inspect.signature(source).parameters.values()
            if parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
        ]
    except ValueError:  # a builtin that does not tell
        return []
    hints = _hints(source, [parameter.name for parameter in parameters])
    return [_need(source, parameter, hints) for parameter in parameters]


def _takes_nothing(source: Any) -> bool:
    """A plain class without a constructor of its own; to hear that from `inspect.signature` takes 40 ms."""
    if type(source) is not type:
        return False
    names = ("__init__", "__new__")
    return all(inspect.getattr_static(source, name) is inspect.getattr_static(object, name) for name in names)


def _need(source: Any, parameter: inspect.Parameter, hints: dict[str, Any]) -> Need:
    optional = parameter.default is not parameter.empty
    asked = hints.get(parameter.name, parameter.empty)
    if asked is parameter.empty and not optional:
        raise Unreadable(f"the parameter {parameter.name!r} of {name_of(source)} has no type to look for")
    owner = fits = None
    if typing.get_origin(asked) is Annotated:
        asked, *extras = typing.get_args(asked)
        owner = next((extra for extra in extras if isinstance(extra, str)), None)
        fits = next((extra for extra in extras if inspect.isfunction(extra)), None)
    nullable = False
    if typing.get_origin(asked) in {typing.Union, types.UnionType}:
        others = [arg for arg in typing.get_args(asked) if arg is not type(None)]
        nullable = len(others) < len(typing.get_args(asked))
        asked = others[0] if len(others) == 1 else asked
    positional = parameter.kind is parameter.POSITIONAL_ONLY
    return Need(parameter.name, asked, owner, optional, nullable, positional, fits)


def _hints(source: Any, names: Iterable[str] = ("return",)) -> dict[str, Any]:
    function = source.func if isinstance(source, functools.partial) else source
    hints: dict[str, Any] = {}
    for target in _annotated(function) if isinstance(function, type) else [function]:
        if hints.keys() >= set(names):
            break
        try:
            hints = typing.get_type_hints(target, include_extras=True) | hints
        except (NameError, AttributeError, TypeError) as error:
            raise Unreadable(
                f"a type in the signature of {name_of(source)} cannot be found: {error}; it must be importable "
                "where it is used, not only for type checkers"
            ) from error
    return hints


def _annotated(kind: type) -> list[Any]:
    """Where a class has the types of its parameters: its constructor, or itself, as those of pydantic and msgspec."""
    constructors = (inspect.getattr_static(kind, name) for name in ("__init__", "__new__"))
    functions = [getattr(each, "__func__", each) for each in constructors]
    return [*filter(inspect.isfunction, functions), kind]
