"""What is around the code of a simulated process: its wall clock and threads, and the eye on its handlers."""

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

from things_kit.messaging.handler import Handle, HandleBatch, Middleware
from things_kit.messaging.instrument import Endpoint, Send
from things_kit.messaging.message import Message
from things_kit.messaging.outcomes import BatchError
from things_kit.testing.simulation.history import Handling
from things_kit.testing.simulation.models.server import EPOCH
from things_kit.testing.simulation.process import SimulatedProcess

if TYPE_CHECKING:
    from things_kit.testing.simulation.run import Run

SLOW: Final = (0.1, 40.0)
"""Seconds that a slow handler takes longer, from and to."""


class Inside:
    """The surroundings of a simulated process."""

    def __init__(self, run: "Run", process: SimulatedProcess) -> None:
        self.chance = process.chance
        self._loop = run.loop
        self._process = process

    def now(self) -> float:
        """Its wall clock."""
        return EPOCH + self._loop.time() + self._process.skew

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A plain function is one step."""
        return copy_context().run(function, *arguments)


class Watching:
    """Notes what handlers do, and lets them be slow, crash and stop."""

    def __init__(self, run: "Run", process: SimulatedProcess) -> None:
        self._run = run
        self._process = process

    def sending(self, endpoint: Endpoint) -> Callable[[Send], Send]:
        """The broker's side notes what was published."""
        return lambda send: send

    def handling(self, endpoint: Endpoint, group: str | None) -> Middleware:
        """Around each message."""

        def around(handle: Handle) -> Handle:
            async def handled(message: Message) -> Any:
                (handling,) = self._begin(group, [message])
                await self._trouble()
                try:
                    answer: Any = await handle(message)  # type: ignore[func-returns-value] # what it is for
                except BaseException:
                    self._ended([handling], failed=True)
                    raise
                self._ended([handling], failed=False)
                return answer

            return handled

        return around

    def handling_batches(self, endpoint: Endpoint, group: str | None) -> Callable[[HandleBatch], HandleBatch]:
        """Around each batch."""

        def around(handle: HandleBatch) -> HandleBatch:
            async def handled(messages: list[Message]) -> None:
                handlings = self._begin(group, messages)
                await self._trouble()
                try:
                    await handle(messages)
                except BatchError as error:
                    for number, handling in enumerate(handlings):
                        self._ended([handling], failed=number in error.errors)
                    raise
                except BaseException:
                    self._ended(handlings, failed=True)
                    raise
                self._ended(handlings, failed=False)

            return handled

        return around

    def _begin(self, group: str | None, messages: list[Message]) -> list[Handling]:
        run, number = self._run, self._process.number
        found = [Handling(message, group, number, run.loop.time()) for message in messages]
        run.history.handlings += found
        for message in messages:
            run.note(f"{group} begins", message)
        return found

    async def _trouble(self) -> None:
        chance = self._run.chance
        if chance.strikes("crash"):
            self._run.condemn(self._process, "crash")
        elif chance.strikes("stop"):
            self._run.condemn(self._process, "stop")
        if chance.strikes("slow_handler"):
            await asyncio.sleep(chance.between(*SLOW))

    def _ended(self, handlings: list[Handling], *, failed: bool) -> None:
        for handling in handlings:
            handling.ended, handling.failed = self._run.loop.time(), failed
            self._run.note("failed" if failed else "handled", handling.message)
