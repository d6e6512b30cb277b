"""Makes what a graph has resolved, by dishka: each thing once, cleaned up in reverse."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from inspect import Parameter, Signature, isasyncgenfunction, isclass, isgeneratorfunction
from typing import Any

from things_kit.app.signature import Kind
from things_kit.app.wiring import Graph, Node, is_kind_of

try:
    from dishka import AsyncContainer, Provider, Scope, make_async_container
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'an App needs the package {error.name!r}, which is not installed: pip install "things-kit[app]"',
        name=error.name,
    ) from None


class Container:
    """What was made for one run of an app."""

    def __init__(self, graph: Graph, *, stop_timeout: float) -> None:
        self._graph = graph
        self._stop_timeout = stop_timeout
        self.made: dict[Node, Any] = {}
        # One for each: what is being made may ask the app for something else
        self._locks: defaultdict[Node, asyncio.Lock] = defaultdict(asyncio.Lock)
        # A key of its own for each node: which node fills a parameter is decided, and no type is looked up again
        self._keys = {node: type(node.label, (), {}) for node in graph.nodes}
        provider = Provider(scope=Scope.APP)
        sound = [node for node in graph.nodes if not any(each.mistakes for each in graph.before(node))]
        for node in sound:
            provider.provide(self._factory(node), provides=self._keys[node])
        # What it would validate, the graph has; and its one lock would let nothing that is being made ask for anything
        self._container: AsyncContainer = make_async_container(
            provider, skip_validation=True, lock_factory=None
        )

    async def get(self, node: Node) -> Any:
        """What the node is, made now if it is not there yet, and before it whatever it needs."""
        value: Any = None
        for each in self._graph.before(node):
            try:
                async with self._locks[each], asyncio.timeout(each.part.timeout) as limit:
                    value = await self._container.get(self._keys[each])
            except Exception as error:
                if limit.expired():
                    raise TimeoutError(f"{each.label} took longer than {each.part.timeout:g} s") from error
                error.add_note(f"while making {each.label}")
                raise
        return value

    async def arguments(self, node: Node) -> tuple[list[Any], dict[str, Any]]:
        """What to call an invoked function with."""
        filled = {
            name: None if other is None else await self.get(other) for name, other in node.filled.items()
        }
        return _arguments(node, filled)

    async def close(self) -> list[Exception]:
        """Run the second halves of all generators, in reverse. Returns what they raised."""
        from dishka.exceptions import ExitError  # noqa: PLC0415 - only where one failed

        try:
            await self._container.close()
        except ExitError as group:
            return list(group.exceptions)
        return []

    def _factory(self, node: Node) -> Callable[..., Any]:
        """An async generator with the parameters that are to be filled, each annotated with the key of what fills it."""

        async def make(**filled: Any) -> AsyncIterator[Any]:
            filled |= {name: None for name, other in node.filled.items() if other is None}
            positional, named = _arguments(node, filled)
            opened = _opened(node, positional, named)
            value = await opened.__aenter__()
            if (mistake := _mistaken(node, value)) is not None:
                await opened.__aexit__(None, None, None)
                raise mistake
            self.made[node] = value
            yield value
            del self.made[node]
            async with asyncio.timeout(self._stop_timeout):
                await opened.__aexit__(None, None, None)

        keys = {name: self._keys[other] for name, other in node.filled.items() if other is not None}
        parameters = [Parameter(name, Parameter.KEYWORD_ONLY, annotation=key) for name, key in keys.items()]
        make.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        make.__annotations__ = {**keys, "return": AsyncIterator[self._keys[node]]}  # type: ignore[name-defined]
        return make


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


def _mistaken(node: Node, value: Any) -> TypeError | None:
    if not isclass(node.provides) or is_kind_of(type(value), node.provides):
        return None
    if getattr(node.provides, "_is_protocol", False):
        return None  # whether it is one shows in use
    return TypeError(f"{node.label} gave {value!r:.80}, which is no {node.provides.__qualname__}")
