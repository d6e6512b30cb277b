"""Waiting for events: the suite never sleeps for a guessed time."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import TypeAlias

Condition: TypeAlias = Callable[[], object]
"""A question about the world, asked again and again; it may be a coroutine function."""


async def _ask(condition: Condition) -> object:
    answer = condition()
    return await answer if inspect.isawaitable(answer) else answer


async def eventually(condition: Condition, within: float = 10.0, what: str = "") -> None:
    """Wait until the condition gives something true.

    Raises:
        AssertionError: It did not within so many seconds; the text says what it gave last.
    """
    deadline = time.monotonic() + within
    pause = 0.002
    while True:
        answer = await _ask(condition)
        if answer:
            return
        if time.monotonic() > deadline:
            asked = what or inspect.getsource(condition).strip()
            raise AssertionError(f"not within {within:g} s: {asked}; at last it gave {answer!r}")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)


async def throughout(condition: Condition, seconds: float, what: str = "") -> None:
    """Watch that the condition stays true for so many seconds.

    For promises that something does not happen. Where the event can be waited for, `never` is sharper.

    Raises:
        AssertionError: It turned false; the text says what it gave.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = await _ask(condition)
        if not answer:
            raise AssertionError(
                f"did not stay so: {what or inspect.getsource(condition).strip()}; gave {answer!r}"
            )
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(0.02)


async def never(event: asyncio.Event, seconds: float, what: str) -> None:
    """Wait for what must not happen within so many seconds.

    Raises:
        AssertionError: It happened.
    """
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
    raise AssertionError(f"this must not happen: {what}")
