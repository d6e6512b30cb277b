"""Handlers that write down what they see."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from things_kit import Message
from things_kit.testing.conformance.history import History
from things_kit.testing.conformance.waiting import eventually

Act: TypeAlias = Callable[[Message], Awaitable[None]]
"""What a recorded handler does: returns or raises, now or later."""


class Recorder:
    """A handler that records each attempt, and then acts.

    Attributes:
        began: The messages of all attempts, in the order in which they began.
        done: The messages that were handled to the end.
        failed: The attempts that ended otherwise, each with its error.
        started_at: The loop's time at which each attempt began, beside `began`.
        failed_at: The loop's time at which each failure ended, beside `failed`.
        running: How many attempts run at this moment.
        peak: The most that ever ran at once.
        history: All of it as events.
    """

    def __init__(self, act: Act | None = None, *, history: History | None = None, name: str = "") -> None:
        self.began: list[Message] = []
        self.done: list[Message] = []
        self.failed: list[tuple[Message, BaseException]] = []
        self.started_at: list[float] = []
        self.failed_at: list[float] = []
        self.running = 0
        self.peak = 0
        self.history = history if history is not None else History()
        self._act = act
        self._name = name

    async def handle(self, message: Message) -> None:
        """Record the message and act on it."""
        loop = asyncio.get_running_loop()
        assert message.id is not None, "a message arrived without an id"
        self.began.append(message)
        self.started_at.append(loop.time())
        self.running += 1
        self.peak = max(self.peak, self.running)
        self.history.add("began", message.id, message.attempt, self._name)
        try:
            if self._act is not None:
                await self._act(message)
        except BaseException as error:
            self.failed.append((message, error))
            self.failed_at.append(loop.time())
            self.history.add("failed", message.id, message.attempt, self._name)
            raise
        else:
            self.done.append(message)
            self.history.add("done", message.id, message.attempt, self._name)
        finally:
            self.running -= 1

    @property
    def attempts(self) -> list[int]:
        """The attempt numbers of all that began, in order."""
        return [message.attempt for message in self.began]

    @property
    def values(self) -> list[bytes]:
        """The values of those that were handled to the end, in order."""
        return [message.value for message in self.done]

    @property
    def ids(self) -> set[str]:
        """The ids of those that were handled to the end."""
        return {message.id for message in self.done if message.id is not None}

    async def until_began(self, count: int, within: float = 15.0) -> list[Message]:
        """Wait until so many attempts began in all, and return them."""
        await self._until(lambda: len(self.began) >= count, within, f"{count} attempts begin")
        return self.began[:count]

    async def until_done(self, count: int, within: float = 15.0) -> list[Message]:
        """Wait until so many were handled to the end, and return them."""
        await self._until(lambda: len(self.done) >= count, within, f"{count} messages are handled to the end")
        return self.done[:count]

    async def _until(self, condition: Callable[[], bool], within: float, what: str) -> None:
        try:
            await eventually(condition, within, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self!r}") from None

    def __repr__(self) -> str:
        return f"Recorder({len(self.began)} began, {len(self.done)} done, {len(self.failed)} failed)"


class Gate:
    """An act that waits until it is opened; `passing` says which messages need not wait."""

    def __init__(self, passing: Callable[[Message], bool] = lambda _: False) -> None:
        self._opened = asyncio.Event()
        self._passing = passing

    async def __call__(self, message: Message) -> None:
        """Wait for the gate."""
        if not self._passing(message):
            await self._opened.wait()

    def open(self) -> None:
        """Let all through, now and later."""
        self._opened.set()


def failing(times: int, error: Callable[[], BaseException] = lambda: ValueError("as told")) -> Act:
    """An act that fails the first attempts of every message, so many times, and then returns."""
    seen: dict[str | None, int] = {}

    async def act(message: Message) -> None:
        seen[message.id] = seen.get(message.id, 0) + 1
        if seen[message.id] <= times:
            raise error()

    return act


async def always_failing(message: Message) -> None:
    """An act that never succeeds."""
    raise ValueError("as told")
