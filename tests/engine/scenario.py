"""What tests of the engine have in common: a handler that takes notes, waiting in virtual time, nothing left behind."""

import asyncio
import functools
import gc
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, overload

from things_kit.engine.surroundings import surroundings
from things_kit.messaging.message import Message
from things_kit.testing import run_virtual


class Recorder:
    """A handler that notes what it got, when, and who ran beside whom; `answer` decides how each call ends."""

    def __init__(self, answer: Callable[[Message], Awaitable[None]] | None = None) -> None:
        self.seen: list[tuple[float, Message]] = []
        self.ended: list[Message] = []
        self.running = 0
        self.most = 0
        self.overlaps: list[bytes] = []
        self._keys: set[bytes] = set()
        self._answer = answer

    @property
    def values(self) -> list[bytes]:
        return [message.value for _, message in self.seen]

    @property
    def times(self) -> list[float]:
        return [time for time, _ in self.seen]

    @property
    def attempts(self) -> list[int]:
        return [message.attempt for _, message in self.seen]

    async def handle(self, message: Message) -> None:
        self.seen.append((asyncio.get_running_loop().time(), message))
        self.running += 1
        self.most = max(self.most, self.running)
        if message.key is not None:
            if message.key in self._keys:
                self.overlaps.append(message.key)
            self._keys.add(message.key)
        try:
            if self._answer is not None:
                await self._answer(message)
            self.ended.append(message)
        finally:
            self.running -= 1
            if message.key is not None:
                self._keys.discard(message.key)


BEGAN: Final = datetime(2030, 1, 1, tzinfo=UTC).timestamp()


class VirtualWorld:
    """The wall clock goes by the loop's, from `BEGAN` on."""

    chance = random.Random(1)
    ahead = 0.0

    def now(self) -> float:
        return BEGAN + asyncio.get_running_loop().time() + self.ahead

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


async def until(condition: Callable[[], object], within: float = 1000.0) -> None:
    """Wait, in virtual time, until the condition holds; looks ever more seldom."""
    loop = asyncio.get_running_loop()
    ends, step = loop.time() + within, 0.001
    while not condition():
        assert loop.time() < ends, "it did not come to that in time"
        await asyncio.sleep(min(step, max(ends - loop.time(), 0.001)))
        step = min(step * 1.1, 5.0)


async def turns(count: int = 20) -> None:
    """Let everything that is ready run, without time passing."""
    for _ in range(count):
        await asyncio.sleep(0)


async def _checked(scenario: Awaitable[None]) -> None:
    """Run it; afterwards no task may be left, and no error may have got lost."""
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    await scenario
    await turns()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    names = [task.get_name() for task in left if task is not None]
    assert not left, f"tasks left: {names}"
    gc.collect()
    assert not problems


Test: TypeAlias = Callable[..., Awaitable[None]]


@overload
def virtual(test: Test) -> Callable[..., None]: ...


@overload
def virtual(
    *, grace: float = 0.0, clean: bool = True, wall_clock: bool = False
) -> Callable[[Test], Callable[..., None]]: ...


def virtual(
    test: Test | None = None, *, grace: float = 0.0, clean: bool = True, wall_clock: bool = False
) -> Callable[..., None] | Callable[[Test], Callable[..., None]]:
    """Run an async test under virtual time; afterwards no task may be left, and no error may have got lost.

    `grace` is for handlers in threads; `clean=False` is for tests that provoke lost errors. With `wall_clock` the time
    that other processes read as well is virtual too.
    """

    def decorate(test: Test) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*arguments: Any, **named: Any) -> None:
            async def main() -> None:
                if wall_clock:
                    surroundings.set(VirtualWorld())  # for this task and what it begins
                await test(*arguments, **named)

            run_virtual(_checked(main()) if clean else main(), grace=grace)

        return run

    return decorate if test is None else decorate(test)
