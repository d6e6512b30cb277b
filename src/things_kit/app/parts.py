"""What an app is put together from: `provide`, `invoke` and `module`."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakSet

START_TIMEOUT: Final = 15.0
"""Seconds that making one thing, or starting one hook, may take where nothing else is said."""


class Place(NamedTuple):
    """Where in the code a part was written."""

    file: str
    line: int

    def __str__(self) -> str:
        path = Path(self.file)
        here = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        return f"{here}:{self.line}"


class Provide:
    """Something that can be asked for, made when it is first needed, once. Made by `provide`.

    What `outlasts` the others is cleaned up when the app has said that it has stopped: logging, such as.
    """

    outlasts = False

    def __init__(
        self, source: Any, *, as_: Any, timeout: float | None, on_demand: bool, place: Place
    ) -> None:
        self.source = source
        self.as_ = as_
        self.timeout = timeout
        self.on_demand = on_demand
        self.place = place

    @property
    def label(self) -> str:
        """What to call it in a sentence."""
        return f"{name_of(self.source)} ({self.place})"


class Invoke:
    """A function that is called at start. Made by `invoke`. `check` tells what is wrong with it before that."""

    def __init__(
        self, function: Callable[..., Any], place: Place, check: Callable[[], Iterable[str]] = tuple
    ) -> None:
        self.function = function
        self.place = place
        self.check = check

    @property
    def label(self) -> str:
        """What to call it in a sentence."""
        return f"{name_of(self.function)} ({self.place})"


class Module:
    """Parts under a name. Made by `module`."""

    def __init__(self, name: str, parts: "Sequence[Part]", place: Place) -> None:
        self.name = name
        self.parts = tuple(parts)
        self.place = place
        known_modules.add(self)

    def __repr__(self) -> str:
        return f"<module {self.name!r} at {self.place}>"


Part: TypeAlias = Provide | Invoke | Module

known_modules: Final[WeakSet[Module]] = WeakSet()
"""All modules that were made in this process: one of them may be what an app forgot."""


class Placed(NamedTuple):
    """A part of an app, and the names of the modules that it is in."""

    part: Any
    owners: tuple[str, ...]


def provide(
    source: Any,
    *,
    as_: Any = None,
    timeout: float | None = START_TIMEOUT,
    on_demand: bool = False,
) -> Provide:
    """Let a class, or what a function returns, be asked for by its type.

    Its parameters are found the same way. It is made once, when it is first needed. The half of a generator after
    its `yield` runs when the app stops, in reverse order; functions may be async.

    Args:
        source: A class, a function that says what it returns, or an object that is there already.
        as_: The one type under which it is found; else it is found under its own and all that it is.
        timeout: The most seconds that making it may take; None for no limit. A function that is not async cannot
            be interrupted.
        on_demand: Whether its own parameters may lack something as long as nobody asks for it.
    """
    return Provide(source, as_=as_, timeout=timeout, on_demand=on_demand, place=caller())


def invoke(function: Callable[..., Any]) -> Invoke:
    """Call a plain or async function at start, its parameters found by their types.

    What is invoked is called in the order in which it is given, before any hook starts.
    """
    return Invoke(function, caller())


def module(name: str, *parts: Part) -> Module:
    """Parts under a name: give it to an `App`, or to another module. Giving it twice is fine."""
    return Module(name, parts, caller())


def caller(depth: int = 2) -> Place:
    """Where the function that asks was called from."""
    frame = sys._getframe(depth)  # noqa: SLF001 - inspect.stack() reads source files
    return Place(frame.f_code.co_filename, frame.f_lineno)


def flatten(parts: Sequence[Any], owners: tuple[str, ...] = ()) -> Iterator[Placed]:
    """All parts in order, those of modules in their place; what is given more than once counts once."""
    seen: set[int] = set()
    for placed in _walk(parts, owners, frozenset()):
        if id(placed.part) not in seen:
            seen.add(id(placed.part))
            yield placed


def _walk(parts: Sequence[Any], owners: tuple[str, ...], above: frozenset[int]) -> Iterator[Placed]:
    for part in parts:
        if not isinstance(part, Module):
            yield Placed(part, owners)
        elif id(part) not in above:
            yield from _walk(part.parts, (*owners, part.name), above | {id(part)})


def modules_in(parts: Sequence[Any]) -> Iterator[Module]:
    """All modules among these parts, and in those."""
    for part in parts:
        if isinstance(part, Module):
            yield part
            yield from modules_in(part.parts)


def name_of(thing: Any) -> str:
    """What to call a class, a function or an object."""
    function = getattr(thing, "func", thing)  # of a partial
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    return str(name or type(thing).__qualname__).removeprefix("<locals>.").split("<locals>.")[-1]
