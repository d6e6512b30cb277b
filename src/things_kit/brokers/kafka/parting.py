"""Asking and ending what belongs to librdkafka: that may block for as long as a broker stands still, and nothing waits for it."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

ResultT = TypeVar("ResultT")

PARTING: Final = 2.0
"""Seconds that the end of a client is waited for: enough where the broker answers."""


def part(end: Callable[[], object], name: str) -> threading.Thread:
    """Have it end in a thread of its own, which keeps no process alive."""
    thread = threading.Thread(target=end, name=f"things_kit kafka {name}", daemon=True)
    thread.start()
    return thread


async def parted(end: Callable[[], object], name: str, within: float = PARTING) -> None:
    """The same, and wait for it for a while."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def ending() -> None:
        try:
            end()
        finally:
            told(loop, ended.set)

    part(ending, name)
    await within_or_not(ended, within)


async def answered(ask: Callable[[], ResultT], name: str) -> ResultT:
    """What this returns or raises, in a thread of its own; whoever is cancelled leaves it alone."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[ResultT] = loop.create_future()

    def settle(take: Callable[[Any], None], value: object) -> None:
        if not answer.done():
            take(value)

    def asking() -> None:
        try:
            found = ask()
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
            told(loop, settle, answer.set_exception, error)
        else:
            told(loop, settle, answer.set_result, found)

    part(asking, name)
    return await answer


async def within_or_not(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but no longer than so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def told(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: Any) -> bool:
    """Have a loop call back, from any thread. False if it is closed: nobody is there any more."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        return False
    return True
