"""Names the handler that holds up the event loop, while it does."""

import asyncio
import logging
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from traceback import walk_stack
from types import CodeType
from typing import Final

log = logging.getLogger("things_kit.app")

LONG: Final = 1.0
"""Seconds for which the loop must not turn before that is said."""

BEAT: Final = 0.25
"""Seconds between two signs of life, and between two looks."""

AGAIN: Final = 60.0
"""Seconds in which the same line is named once."""

OURS: Final = str(Path(__file__).parents[1])
OTHERS: Final = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


class BlockedLoop:
    """A thread that looks whether the loop turns, from `begin` until it was asked to `end` as often."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread_of_loop = threading.get_ident()
        self._users = 0
        self._beat = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._over = threading.Event()
        self._named: dict[str, float] = {}

    def begin(self) -> None:
        """Look from now on. A loop whose time is not the clock's, as in tests, is left alone."""
        self._users += 1
        if self._users == 1 and abs(self._loop.time() - time.monotonic()) < LONG:
            self._over = threading.Event()
            self._live()
            threading.Thread(
                target=self._look, args=(self._over,), name="things_kit blocking", daemon=True
            ).start()

    def end(self) -> None:
        """One of those who asked for it needs it no longer."""
        self._users -= 1
        if self._users == 0:
            self._over.set()
            _loops.pop(self._loop, None)
            if self._timer is not None:
                self._timer.cancel()

    def _live(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(BEAT, self._live)

    def _look(self, over: threading.Event) -> None:
        told = 0.0
        while not over.wait(BEAT):
            beat = self._beat
            if time.monotonic() - beat > LONG and beat != told:
                told = beat
                self._tell()

    def _tell(self) -> None:
        frame = sys._current_frames().get(self._thread_of_loop)  # noqa: SLF001 - as faulthandler does; there is no other way
        stack = [(each.f_code, line) for each, line in walk_stack(frame)] if frame is not None else []
        said = _culprit(stack)
        now = time.monotonic()
        if said is None or self._named.get(said, 0.0) > now - AGAIN:
            return
        self._named[said] = now
        log.warning(
            "%s: the event loop does not turn for over %g s, and all else waits; await what takes long, or let the handler "
            "be a plain function, which runs in a thread", said, LONG,
        )  # fmt: skip


def _culprit(stack: Sequence[tuple[CodeType, int]]) -> str | None:
    """The handler, and the line at which it stands; None if the loop is not in one. The innermost frame comes first."""
    ours = next((index for index, (code, _) in enumerate(stack) if code.co_filename.startswith(OURS)), None)
    if not ours:
        return None  # it is in our own code, or in none that we called
    above = stack[:ours]
    code, line = next(((code, line) for code, line in above if _is_users(code)), above[-1])
    handler = next((code for code, _ in reversed(above) if _is_users(code)), above[-1][0])
    return f"the handler {handler.co_qualname} blocks at {code.co_filename}:{line}"


def _is_users(code: CodeType) -> bool:
    return not code.co_filename.startswith((*OTHERS, "<"))


_loops: Final[dict[asyncio.AbstractEventLoop, BlockedLoop]] = {}


def watch_over() -> BlockedLoop:
    """The one that looks after the running loop."""
    loop = asyncio.get_running_loop()
    if loop not in _loops:
        _loops[loop] = BlockedLoop(loop)
    return _loops[loop]
