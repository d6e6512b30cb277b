"""Makes what a graph has resolved: each thing once, cleaned up in reverse."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from inspect import isasyncgenfunction, isclass, isgeneratorfunction
from typing import Any

from things_kit.app.parts import Provide
from things_kit.app.signature import Kind
from things_kit.app.wiring import Graph, Node, is_kind_of


class Container:
    """What was made for one run of an app.

    Attributes:
        made: All that is there, in the order in which it was made.
    """

    def __init__(self, graph: Graph, *, stop_timeout: float) -> None:
        self._graph = graph
        self._stop_timeout = stop_timeout
        self.made: dict[Node, Any] = {}
        self._opened: dict[Node, AbstractAsyncContextManager[Any]] = {}
        # One for each: what is being made may ask the app for something else
        self._locks: defaultdict[Node, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def get(self, node: Node) -> Any:
        """What the node is, made now if it is not there yet, and before it whatever it needs."""
        for each in self._graph.before(node):
            async with self._locks[each]:
                if each not in self.made:
                    await self._make(each)
        return self.made[node]

    async def arguments(self, node: Node) -> tuple[list[Any], dict[str, Any]]:
        """What to call an invoked function with."""
        filled = {
            name: None if other is None else await self.get(other) for name, other in node.filled.items()
        }
        return _arguments(node, filled)

    async def close(self, *, outlasting: bool) -> list[Exception]:
        """Run the second halves of all generators, in reverse, all of them. Returns what they raised.

        What outlasts the others is left, unless that is said.
        """
        errors: list[Exception] = []
        while (node := self._last(outlasting)) is not None:
            opened = self._opened.pop(node)
            self.made.pop(node, None)
            try:
                async with asyncio.timeout(self._stop_timeout):
                    await opened.__aexit__(None, None, None)
            except Exception as error:  # noqa: BLE001 - the others are cleaned up all the same
                errors.append(error)
        return errors

    def _last(self, outlasting: bool) -> Node | None:
        """What was made last, of what is to be cleaned up."""
        for node in reversed(self._opened):
            if outlasting or not (isinstance(node.part, Provide) and node.part.outlasts):
                return node
        return None

    async def _make(self, node: Node) -> None:
        filled = {name: None if other is None else self.made[other] for name, other in node.filled.items()}
        opened = _opened(node, *_arguments(node, filled))
        try:
            async with asyncio.timeout(node.part.timeout) as limit:
                value = await opened.__aenter__()
            self._opened[node] = opened
            _check(node, value)
        except Exception as error:
            if limit.expired():
                raise TimeoutError(f"{node.label} took longer than {node.part.timeout:g} s") from error
            error.add_note(f"while making {node.label}")
            raise
        self.made[node] = value


def _arguments(node: Node, filled: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    positional = [filled.pop(need.name) for need in node.needs if need.positional and need.name in filled]
    return positional, filled


@asynccontextmanager
async def _opened(node: Node, positional: list[Any], named: dict[str, Any]) -> AsyncIterator[Any]:
    """The thing for as long as it is needed, whatever way it is made."""
    source = node.part.source
    if node.kind is Kind.VALUE:
        yield source
    elif node.kind is Kind.CALL:
        yield source(*positional, **named)
    elif node.kind is Kind.ASYNC_CALL:
        yield await source(*positional, **named)
    elif node.kind is Kind.GENERATOR:
        opened: Callable[..., AbstractContextManager[Any]] = (
            contextmanager(source) if isgeneratorfunction(source) else source
        )
        with opened(*positional, **named) as value:
            yield value
    else:
        entered: Callable[..., AbstractAsyncContextManager[Any]] = (
            asynccontextmanager(source) if isasyncgenfunction(source) else source
        )
        async with entered(*positional, **named) as value:
            yield value


def _check(node: Node, value: Any) -> None:
    if not isclass(node.provides) or is_kind_of(type(value), node.provides):
        return
    if getattr(node.provides, "_is_protocol", False):
        return  # whether it is one shows in use
    raise TypeError(f"{node.label} gave {value!r:.80}, which is no {node.provides.__qualname__}")
