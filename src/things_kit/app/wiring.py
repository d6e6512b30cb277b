"""Finds what fills each parameter, and every mistake in it before anything is made."""

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any

from things_kit.app.parts import Invoke, Module, Place, Placed, Provide, flatten, known_modules, name_of
from things_kit.app.signature import Kind, Need, Unreadable, given_by, kind_of, needs_of, yields


class WiringError(Exception):
    """The parts of an app do not fit together; `mistakes` has a sentence for each reason."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        lines = [f"  {number}. {mistake}" for number, mistake in enumerate(mistakes, 1)]
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__("\n".join([f"{count} in how this app is put together:", *lines]))


class Node:
    """One thing that is provided: what it is, what it needs, and what will fill that."""

    def __init__(self, part: Provide, owners: tuple[str, ...] = ()) -> None:
        self.part = part
        self.owners = owners
        self.label = part.label
        self.kind = kind_of(part.source)
        self.provides: Any = None
        self.needs: list[Need] = []
        self.filled: dict[str, Node | None] = {}
        self.mistakes: list[str] = []

    def is_a(self, asked: Any) -> bool:
        """Whether it may stand where `asked` is asked for."""
        if self.part.as_ is not None:
            return bool(self.provides == asked)
        return self.provides == asked or is_kind_of(self.provides, asked)


class Graph:
    """All that an app provides and calls, resolved. Making one makes nothing else."""

    def __init__(self, parts: Sequence[Any], given: Mapping[type, Any] = MappingProxyType({})) -> None:
        """Resolve the parts. `given` are objects that can be asked for as well, by these types.

        Raises:
            WiringError: With all mistakes at once.
        """
        self.nodes = [Node(Provide(value, as_=kind, timeout=None, on_demand=False, place=Place("", 0)))
                      for kind, value in given.items()]  # fmt: skip
        self.calls: list[Node] = []
        mistakes: list[str] = []
        for placed in flatten(parts):
            mistakes += self._add(placed)
        for node in [*self.nodes, *self.calls]:
            self._read(node)
        for node in [*self.nodes, *self.calls]:
            self._fill(node)
        mistakes += self._found()
        if mistakes:
            raise WiringError(list(dict.fromkeys(mistakes)))

    def find(self, asked: Any, owner: str | None = None) -> Node:
        """What fills a parameter of this type. Raises WiringError."""
        need = Need("", asked, owner, optional=False, nullable=False, positional=False)
        found = self._candidates(need, None)
        if len(found) != 1:
            raise WiringError([self._unfilled(need, None, found)])
        mistakes = [mistake for node in self.before(found[0]) for mistake in node.mistakes]
        if mistakes:
            raise WiringError(mistakes)
        return found[0]

    def before(self, node: Node) -> list[Node]:
        """The node and all that it needs, what is needed first."""
        order: dict[Node, None] = {}
        self._visit(node, order, [])
        return list(order)

    def _add(self, placed: Placed) -> list[str]:
        part = placed.part
        if isinstance(part, Provide):
            self.nodes.append(Node(part, placed.owners))
        elif isinstance(part, Invoke):
            if not callable(part.function):
                return [f"invoke takes a function, and {part.label} is none"]
            if yields(part.function):
                return [f"invoke calls {part.label}, which is a generator, so nothing of it would run: it must return, "
                        "not yield; provide() takes a generator"]  # fmt: skip
            call = Provide(part.function, as_=None, timeout=None, on_demand=False, place=part.place)
            self.calls.append(Node(call, placed.owners))
            return [f"{mistake} ({part.place})" for mistake in part.check()]
        else:
            where = f"the module {placed.owners[-1]!r}" if placed.owners else "an App"
            if isinstance(part, ModuleType):
                name = part.__name__.rpartition(".")[2]
                meant = (
                    f"write {name}.module"
                    if isinstance(getattr(part, "module", None), Module)
                    else "it has no part"
                )
                return [f"{where} takes parts, and the Python module {name} is none: {meant}"]
            return [f"{where} takes parts, and {name_of(part)} is none: write provide({name_of(part)}) "
                    f"or invoke({name_of(part)})"]  # fmt: skip
        return []

    def _read(self, node: Node) -> None:
        part = node.part
        try:
            if node not in self.calls:
                node.provides = given_by(part.source) if part.as_ is None else self._named(part)
            node.needs = needs_of(part.source)
        except Unreadable as error:
            node.mistakes.append(f"{error} ({part.place})")

    @staticmethod
    def _named(part: Provide) -> Any:
        """The type that `as_` says, if what is provided is one, as far as it tells."""
        try:
            given = given_by(part.source)
        except Unreadable:
            if isinstance(part.source, type):
                raise
            return part.as_
        if isinstance(given, type) and isinstance(part.as_, type) and not is_kind_of(given, part.as_):
            raise Unreadable(
                f"{name_of(part.source)} gives {name_of(given)}, which is no {name_of(part.as_)}"
            )
        return part.as_

    def _fill(self, node: Node) -> None:
        for need in node.needs:
            found = self._candidates(need, node)
            if found == [node] and need.optional:
                continue
            if len(found) == 1:
                node.filled[need.name] = found[0]
                if need.fits is not None and (mistake := need.fits(found[0].provides)):
                    node.mistakes.append(f"{mistake} ({found[0].part.place})")
            elif need.nullable and not found:
                node.filled[need.name] = None
            elif found or not need.optional:
                node.mistakes.append(self._unfilled(need, node, found))

    def _candidates(self, need: Need, asker: Node | None) -> list[Node]:
        pool = [node for node in self.nodes if need.owner is None or need.owner in node.owners]
        exact = [node for node in pool if node.provides == need.asked]
        other = [node for node in pool if node.is_a(need.asked)]
        for found in (exact, other):
            besides = [
                node for node in found if node is not asker
            ]  # one that wraps another is not that other
            if besides:
                return besides
        return exact or other

    def _unfilled(self, need: Need, asker: Node | None, found: Sequence[Node]) -> str:
        """Why the one thing that fills the need is not found, in a sentence."""
        asked = f"{_type_name(need.asked)}" + (f" of the module {need.owner!r}" if need.owner else "")
        who = f", which {asker.label} asks for as {need.name!r}" if asker is not None else ""
        if found:
            several = " and ".join(node.label for node in found)
            modules = [node.owners[-1] for node in found if node.owners]
            which = (
                f"ask for Annotated[{asked}, {modules[0]!r}], the one of that module"
                if len(set(modules)) == len(found) and need.owner is None
                else "ask for one of their own types, or say which with provide(..., as_=...)"
            )
            return f"{len(found)} things are {asked}{who}: {several}; {which}"
        return f"nothing provides {asked}{who}{self._hint(need.asked, need.owner)}"

    def _hint(self, asked: Any, owner: str | None) -> str:
        import difflib  # noqa: PLC0415 - for mistakes only

        for module in sorted(known_modules, key=lambda module: module.name):
            if owner is not None and module.name != owner:
                continue
            for placed in flatten([module]):
                if isinstance(placed.part, Provide) and _would_be(placed.part, asked):
                    return f"; the module {module.name!r} ({module.place}) does: add it to the App"
        names = {_type_name(node.provides): node.label for node in self.nodes if node.provides is not None}
        close = difflib.get_close_matches(_type_name(asked), names, n=1)
        return f"; {names[close[0]]} is something else of a like name" if close else ""

    def _found(self) -> list[str]:
        """The mistakes of all that will be, or could be, made; and the cycles among them."""
        wanted: dict[Node, None] = {}
        cycles: list[str] = []
        for node in [*self.nodes, *self.calls]:
            if not node.part.on_demand:
                cycles += self._visit(node, wanted, [])
        return [mistake for node in wanted for mistake in node.mistakes] + cycles

    def _visit(self, node: Node, order: dict[Node, None], path: list[Node]) -> list[str]:
        if node in path:
            ring = [*path[path.index(node) :], node]
            return [f"{' needs '.join(each.label for each in ring)}: a circle that nothing can begin"]
        if node in order:
            return []
        cycles: list[str] = []
        for filled in node.filled.values():
            if filled is not None:
                cycles += self._visit(filled, order, [*path, node])
        order[node] = None
        return cycles


def is_kind_of(provided: Any, asked: Any) -> bool:
    """Whether a class is a subclass of another, or has what a runtime protocol wants."""
    if not inspect.isclass(provided) or not inspect.isclass(asked) or asked is object:
        return False
    try:
        return issubclass(provided, asked)
    except TypeError:  # a generic, or a protocol that cannot be checked: then only by name
        return asked in getattr(provided, "__mro__", ())


def _would_be(part: Provide, asked: Any) -> bool:
    try:
        given = given_by(part.source) if part.as_ is None else part.as_
    except Unreadable:
        return False
    return bool(given == asked)


def _type_name(kind: Any) -> str:
    return name_of(kind) if isinstance(kind, type) else str(kind)


__all__ = ["Graph", "Kind", "Node", "WiringError", "is_kind_of"]
