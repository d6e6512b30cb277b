"""An app as a process: its event loop, its signals, its exit code."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

from things_kit.app.app import App, Loop
from things_kit.app.wiring import WiringError

log = logging.getLogger("things_kit.app")

FAILED: Final = 1
SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGBREAK")
"""Those that stop an app, where the system has them."""

SUPERVISED: Final = "THINGS_KIT_SUPERVISED"
"""The variable that gives a worker the number of a pipe whose other end its supervisor holds."""
WORKER: Final = "THINGS_KIT_WORKER"
"""The variable that says which worker of its supervisor a process is, from 1."""


def run(app: App, loop: Loop = "auto") -> int:
    """Run an app until it is asked to stop or breaks; returns the exit code, after the reason was logged.

    Raises:
        ModuleNotFoundError: uvloop is asked for, and not installed.
    """
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        return runner.run(serve(app))


def loop_factory(loop: Loop) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes such a loop; None for the standard library's. Raises ModuleNotFoundError if uvloop is to be had and is not there."""
    if loop == "asyncio":
        return None
    try:
        import uvloop  # noqa: PLC0415 - may be missing
    except ModuleNotFoundError:
        if loop == "uvloop":
            why = 'the event loop of uvloop needs uvloop: pip install "things-kit[uvloop]"'
            raise ModuleNotFoundError(why, name="uvloop") from None
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def serve(app: App) -> int:
    """Start, wait for the end, stop; returns the exit code."""
    app.worker = int(os.environ.pop(WORKER, "1"))  # not for processes that the app starts
    starting = asyncio.create_task(_start(app), name="start")

    def ask() -> None:
        log.info("asked to stop")
        if not starting.cancel():
            with suppress(RuntimeError):  # it did not start, or has ended meanwhile
                app.shutdown()

    loop = asyncio.get_running_loop()
    with _signals(loop, ask), _supervised(loop, ask):
        code = await starting
        return await _until_the_end(app) if code is None else code


async def _start(app: App) -> int | None:
    """Start; returns an exit code if that is the end of it already."""
    said: list[Exception] = []

    def report(error: Exception) -> None:
        _complain("the app did not start", error)
        said.append(error)

    try:
        await app.start(report=report)
    except asyncio.CancelledError as cancelled:
        return 0 if cancelled.__cause__ is None else FAILED
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason
        if error not in said:
            report(error)
        return FAILED
    return None


async def _until_the_end(app: App) -> int:
    code = 0
    try:
        await app.wait()
    except Exception as error:  # noqa: BLE001 - as above
        _complain("the app broke", error)
        code = FAILED
    finally:
        try:
            await app.stop()
        except ExceptionGroup:  # each of them was logged
            code = FAILED
    return code


def _complain(what: str, error: Exception) -> None:
    """Log the reason; with a traceback, unless it is one of our own errors: those are whole sentences."""
    ours = isinstance(error, WiringError) or type(error).__module__.startswith("things_kit.")
    log.error("%s: %s", what, str(error) or repr(error), exc_info=None if ours else error)


@contextmanager
def _signals(loop: asyncio.AbstractEventLoop, ask: Callable[[], None]) -> Iterator[None]:
    """Ask to stop at the first signal; the second has its default action, which ends the process whatever it does.

    These are the interpreter's handlers, not the loop's: they also run while a handler blocks the loop. Process 1 of a
    container has no default action, so there it ends itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may have handlers
        return
    numbers = [signal.Signals[name] for name in SIGNALS if name in signal.Signals.__members__]

    def first(_: int, __: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, end if os.getpid() == 1 else signal.SIG_DFL)
        with suppress(RuntimeError):  # the loop is closed: nothing is left to stop
            loop.call_soon_threadsafe(ask)

    def end(number: int, _: FrameType | None) -> None:
        os._exit(128 + number)

    before = {number: signal.signal(number, first) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _supervised(loop: asyncio.AbstractEventLoop, ask: Callable[[], None]) -> Iterator[None]:
    """Ask to stop when the supervisor is gone, however it ended: nobody would stop this process any more."""
    number = os.environ.pop(SUPERVISED, None)  # not for processes that the app starts
    if number is None:
        yield
        return
    pipe = int(number)
    os.set_inheritable(pipe, False)

    def closed() -> None:
        loop.remove_reader(pipe)
        log.warning("the supervisor is gone")
        ask()

    loop.add_reader(pipe, closed)
    try:
        yield
    finally:
        loop.remove_reader(pipe)
