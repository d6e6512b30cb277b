"""Virtual time: an event loop in which waiting takes no time.

Back-offs, timeouts and leases of the engine come from the event loop's clock alone. Under a `VirtualTimeLoop` that
clock stands still while anything is ready to run, and jumps to the next timer when nothing is, so a test of an
hour's back-off ends at once:

    async def scenario() -> None:
        await asyncio.sleep(3600)

    run_virtual(scenario())

With pytest-asyncio, name the loop in a hook of `conftest.py` and ask for it by mark:

    def pytest_asyncio_loop_factories(config, item):
        return {"virtual": VirtualTimeLoop}

Work outside the loop takes real time. While a thread of `run_in_executor` (and `asyncio.to_thread`) runs, or a socket
or pipe is watched, the clock goes on at its usual pace instead of jumping. Threads that only call
`call_soon_threadsafe` cannot be seen: give the loop a `grace` of real seconds to hear from them before each jump.
"""

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

ResultT = TypeVar("ResultT")
Ts = TypeVarTuple("Ts")


class NothingCanHappen(RuntimeError):
    """The loop waits, but there is no timer, no thread and no socket that could ever wake it."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer whenever nothing is ready.

    Attributes:
        grace: Real seconds to listen for threads of somebody else before each jump.
        patience: Real seconds to wait for a wake-up when there is no timer at all; then `NothingCanHappen`.
    """

    def __init__(self, *, grace: float = 0.0, patience: float = 2.0) -> None:
        self._clock = _JumpingSelector(grace, patience)
        super().__init__(self._clock)
        # From here on what is registered is the user's; before, it is the loop's own way to be woken.
        self._clock.own = len(self._clock.get_map())

    def time(self) -> float:
        """Seconds on the virtual clock, from 0 at the loop's creation."""
        return self._clock.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], ResultT], *args: *Ts
    ) -> asyncio.Future[ResultT]:
        """As in every loop; until the thread is done, time does not jump."""
        future = super().run_in_executor(executor, func, *args)
        self._clock.outside += 1
        future.add_done_callback(self._came_back)
        return future

    async def shutdown_default_executor(self, *args: Any, **options: Any) -> None:
        """As in every loop; time does not jump while threads are joined."""
        self._clock.outside += 1
        try:
            await super().shutdown_default_executor(*args, **options)
        finally:
            self._clock.outside -= 1

    def _came_back(self, _: "asyncio.Future[Any]") -> None:
        self._clock.outside -= 1


class _JumpingSelector(selectors.BaseSelector):
    """The system's selector, and the loop's clock: where the loop would sleep, time moves on instead."""

    def __init__(self, grace: float, patience: float) -> None:
        self.now = 0.0
        self.outside = 0
        self.own = 0
        self._grace = grace
        self._patience = patience
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> "list[tuple[selectors.SelectorKey, int]]":
        """What is ready now; if nothing is, the clock moves by `timeout`, in no time unless work is outside."""
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        if self.outside or len(self._real.get_map()) > self.own:
            return self._wait(timeout)
        if timeout is None:
            ready = self._real.select(self._patience)
            if not ready:
                raise NothingCanHappen(
                    "everything waits, and there is no timer, thread or socket that could ever wake it: "
                    "an event is never set, or a thread is not of run_in_executor"
                )
            return ready
        if self._grace:
            ready = self._real.select(self._grace)
        if not ready:
            self.now += timeout
        return ready

    def _wait(self, timeout: float | None) -> "list[tuple[selectors.SelectorKey, int]]":
        began = time.monotonic()
        ready = self._real.select(timeout)
        passed = time.monotonic() - began
        # Without an event the timer is due, however early the system's clock says that it woke us.
        self.now += passed if ready or timeout is None else max(passed, timeout)
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


def virtual_time(*, grace: float = 0.0, patience: float = 2.0) -> Callable[[], VirtualTimeLoop]:
    """A loop factory with these settings, for `asyncio.Runner` and pytest-asyncio."""
    return partial(VirtualTimeLoop, grace=grace, patience=patience)


def run_virtual(main: Coroutine[Any, Any, ResultT], *, grace: float = 0.0, patience: float = 2.0) -> ResultT:
    """Run a coroutine to its end under virtual time, as `asyncio.run` does under real time.

    Raises:
        NothingCanHappen: It waits for what can never come.
    """
    with asyncio.Runner(loop_factory=virtual_time(grace=grace, patience=patience)) as runner:
        return runner.run(main)
