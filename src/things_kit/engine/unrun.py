"""Code that looks as if it ran and has not: generators nobody iterates, coroutines nobody awaits."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any


def yields(function: Any) -> bool:
    """Whether calling this makes a generator, so that nothing of it runs."""
    calls = (function, getattr(type(function), "__call__", None))  # noqa: B004 - it is looked at, not tested for
    return any(inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call) for call in calls)


def ran(call: Callable[..., Awaitable[Any]], name: str) -> Callable[..., Awaitable[None]]:
    """The same function, but a failure where it answers with something that has yet to run."""

    async def checked(*arguments: Any) -> None:
        result = await call(*arguments)
        if result is not None:
            refuse_unrun(result, name)

    return checked


def refuse_unrun(result: Any, name: str) -> None:
    """Close a coroutine or generator, and cancel a future, that was returned instead of run. Raises TypeError for it."""
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        what = "a generator, so nothing of it ran: it must return, not yield"
    elif inspect.isawaitable(result):
        what = f"a {type(result).__name__} that nobody awaits: write `return await ...`"
    else:
        return
    discard(result)
    raise TypeError(f"{name} returned {what}")


def discard(result: Any) -> None:
    """Let go of what will not be run, without a warning that it never was."""
    if inspect.iscoroutine(result) or inspect.isgenerator(result):
        result.close()
    elif asyncio.isfuture(result):
        result.cancel()
