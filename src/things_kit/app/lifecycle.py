"""What starts and stops with an app, in order and in reverse, each within its time."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple, TypeAlias

from things_kit.app.parts import START_TIMEOUT, name_of
from things_kit.app.signature import finish, yields

log = logging.getLogger("things_kit.app")

STOP_TIMEOUT: Final = 35.0
"""Seconds that stopping one hook may take where nothing else is said: what consumers have to drain, and 5 more."""

Step: TypeAlias = Callable[[], Any]
"""A plain or async function without parameters."""


class Hook(NamedTuple):
    """Something that starts and stops with the app.

    Attributes:
        on_start: Called at start, in the order of the hooks. Plain or async; a plain one runs in the event loop.
        on_stop: Called at stop, in reverse order, if the hook had started.
        watch: Awaited while the app runs: if it raises, the app stops and fails with that error. It is cancelled
            before `on_stop`.
        start_timeout: The most seconds that an async `on_start` may take; None for no limit.
        stop_timeout: The same of `on_stop`; None for what the app says.
        says: What is logged once it has started.
        tally: What it has done by the time it has stopped, such as `{"handled": 5}`; the app logs the sums of all hooks.
        together: It starts and stops side by side with its neighbours of which the same is said.
        label: What to call it in a sentence; by default the name of its first function.
    """

    on_start: Step | None = None
    on_stop: Step | None = None
    watch: Callable[[], Awaitable[Any]] | None = None
    start_timeout: float | None = START_TIMEOUT
    stop_timeout: float | None = None
    says: Callable[[], str] | None = None
    tally: Callable[[], Mapping[str, int]] | None = None
    together: bool = False
    label: str | None = None

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        step = self.on_start or self.on_stop or self.watch
        if self.label is not None:
            return self.label
        return name_of(step) if step is not None else "an empty hook"


class Lifecycle:
    """The hooks of one run of an app; ask for it in a constructor or an invoked function, and append to it.

    Attributes:
        tally: The sums of what the hooks that have stopped say of themselves.
    """

    def __init__(self, stop_timeout: float = STOP_TIMEOUT) -> None:
        self.tally: Counter[str] = Counter()
        self._stop_timeout = stop_timeout
        self._hooks: list[Hook] = []
        self._begun = False
        self._started: list[list[Hook]] = []
        self._watches: dict[Hook, asyncio.Task[Any]] = {}
        self._stopping = False
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None

    def append(self, hook: Hook) -> None:
        """Add a hook behind all others. Raises RuntimeError once the app has begun to start its hooks."""
        if not isinstance(hook, Hook):
            raise TypeError(f"Lifecycle.append takes a Hook(on_start=..., on_stop=...), not {hook!r}")
        for step in (hook.on_start, hook.on_stop, hook.watch):
            if step is not None and not callable(step):
                raise TypeError(f"a hook's step is a function; {step!r} cannot be called")
            if yields(step):
                raise TypeError(
                    f"a hook's step {name_of(step)} is a generator, so nothing of it would run: it must return, not yield"
                )
        if self._begun:
            raise RuntimeError(f"{hook.name} comes too late: hooks are added before the first of them starts")
        self._hooks.append(hook)

    @property
    def ending(self) -> bool:
        """Whether it stops, or was asked to."""
        return self._stopping or self._ended.is_set()

    @property
    def failure(self) -> BaseException | None:
        """What the app was asked to stop for, where that is a failure."""
        return self._failure

    def shutdown(self, failure: BaseException | None = None) -> None:
        """Ask the app to stop: because it is done, or because of a failure, which it will then end with."""
        if failure is not None and self._failure is None and not self._stopping:
            self._failure = failure
        self._ended.set()

    async def wait(self) -> None:
        """Wait until somebody asks the app to stop. Raises the failure that it was asked for with."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    async def start(self) -> None:
        """Start all hooks in order. Raises what the first failing one raised; those before it are still started."""
        self._begun = True
        for together, neighbours in groupby(self._hooks, lambda hook: hook.together):
            for group in [list(neighbours)] if together else [[hook] for hook in neighbours]:
                await self._start(group)

    async def stop(self) -> list[Exception]:
        """Stop what has started, in reverse, all of it even if one fails. Returns what they raised."""
        self._stopping = True
        errors: list[Exception] = []
        while self._started:
            group = self._started.pop()
            if len(group) == 1:
                try:
                    await self._stop(group[0])
                except Exception as error:  # noqa: BLE001 - the others are stopped all the same
                    errors.append(error)
                continue
            results = await asyncio.gather(*map(self._stop, reversed(group)), return_exceptions=True)
            errors += [result for result in results if isinstance(result, Exception)]
        return errors

    async def _start(self, group: Sequence[Hook]) -> None:
        started: list[Hook] = []
        self._started.append(started)
        if len(group) == 1:  # in this very task: whoever enters something here leaves it in the same
            await self._start_one(group[0], started)
            return
        tasks = [asyncio.create_task(self._start_one(hook, started)) for hook in group]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        failures = [error for task in done if not task.cancelled() and (error := task.exception())]
        for other in failures[1:]:
            log.error("as well: %s", other, exc_info=other)
        if failures:
            raise failures[0]

    async def _start_one(self, hook: Hook, started: list[Hook]) -> None:
        await _step(hook.on_start, hook.start_timeout, f"starting {hook.name}")
        started.append(hook)
        if hook.says is not None:
            log.info("%s", hook.says())
        if hook.watch is not None:
            self._watch(hook, hook.watch)

    def _watch(self, hook: Hook, watch: Callable[[], Awaitable[Any]]) -> None:
        async def watching() -> None:
            try:
                await watch()
            except asyncio.CancelledError as cancelled:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                failure = RuntimeError(f"{hook.name} was cancelled: {cancelled}")
                failure.__cause__ = cancelled
                self.shutdown(failure)
            except Exception as failure:  # noqa: BLE001 - whatever it is, the app ends with it
                self.shutdown(failure)

        self._watches[hook] = asyncio.create_task(watching(), name=f"watch {hook.name}")

    async def _stop(self, hook: Hook) -> None:
        watch = self._watches.pop(hook, None)
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        limit = self._stop_timeout if hook.stop_timeout is None else hook.stop_timeout
        try:
            await _step(hook.on_stop, limit, f"stopping {hook.name}")
        finally:
            if hook.tally is not None:
                self.tally.update(hook.tally())


async def _step(step: Step | None, limit: float | None, what: str) -> None:
    if step is None:
        return
    try:
        async with asyncio.timeout(limit) as timeout:
            await finish(step(), name_of(step))
    except TimeoutError as error:
        if timeout.expired():
            raise TimeoutError(f"{what} took longer than {limit:g} s") from error
        raise
