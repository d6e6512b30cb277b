"""A process that dies at a chosen turn of its event loop."""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

KILLED = 9
"""The exit code of one that died so."""


class Mortal(asyncio.SelectorEventLoop):
    """A loop whose process dies `left` turns from now, once that is set."""

    left: int | None = None

    def _run_once(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                os._exit(KILLED)
        super()._run_once()  # type: ignore[misc] # the one step of asyncio's loop


def doom(turns: int | None) -> None:
    """Have this process die so many turns from now, unless it is doomed already."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, Mortal) and loop.left is None:
        loop.left = turns


def child(work: Coroutine[Any, Any, object], within: float = 60) -> int:
    """The exit code of a process that does this."""
    return ended(started(work, within))


def started(work: Coroutine[Any, Any, object], within: float = 20) -> int:
    """The id of a process that does this."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with asyncio.Runner(loop_factory=Mortal) as runner:
                runner.run(asyncio.wait_for(work, within))
            code = 0
        finally:
            os._exit(code)
    work.close()
    return pid


def ended(pid: int) -> int:
    """The exit code of this process, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
