"""Several processes of one app: started again when they die, when a file changes, and drained together."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterable, Sequence
from contextlib import suppress
from typing import Any, Final

from things_kit.app.process import SUPERVISED, WORKER

log = logging.getLogger("things_kit.app")

WRONG_USE: Final = 2
"""The exit code of a worker that was asked for something that is not there: starting it again cannot help."""
FIRST: Final = 0.5
LIMIT: Final = 30.0
STEADY: Final = 60.0
"""Seconds that a worker must live for its next death to be the first again."""


class Supervisor:
    """Keeps workers running until it is asked to stop by a signal, or until all have ended well by themselves.

    A worker that dies is started again after a wait that grows from half a second to 30; with `changes`, after the
    next change. Every change stops all workers and starts them again.

    If it is killed itself, the workers drain and end: each has an end of a pipe that then closes (not on Windows).
    """

    def __init__(
        self, command: Sequence[str], workers: int, changes: AsyncIterable[Any] | None = None
    ) -> None:
        self._command = command
        self._count = workers
        self._changes = changes
        self._processes: set[asyncio.subprocess.Process] = set()
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._code = 0
        self._pipe: tuple[int, int] | None = None

    async def run(self) -> int:
        """Run; returns the exit code. SIGINT and SIGTERM drain all workers, a second one kills them."""
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGINT, signal.SIGTERM]
        with suppress(NotImplementedError):  # Windows: there Ctrl-C reaches the workers by itself
            for number in numbers:
                loop.add_signal_handler(number, self._signalled)
        watching = asyncio.create_task(self._watch(self._changes)) if self._changes is not None else None
        self._pipe = os.pipe() if os.name == "posix" else None
        try:
            await asyncio.gather(*(self._keep(number) for number in range(1, self._count + 1)))
        finally:
            for process in self._processes:
                _kill(process)
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            for end in self._pipe or ():
                os.close(end)
        return self._code

    def stop(self, code: int = 0) -> None:
        """Drain all workers and end with this code."""
        self._code = self._code or code
        self._stopping.set()
        self._changed.set()
        for process in self._processes:
            _send(process, signal.SIGTERM)

    def _signalled(self) -> None:
        if not self._stopping.is_set():
            self.stop()
            return
        for process in self._processes:
            _kill(process)

    async def _watch(self, changes: AsyncIterable[Any]) -> None:
        async for _ in changes:
            if self._stopping.is_set():
                return
            log.warning("a file has changed: starting again")
            self._changed.set()
            self._changed = asyncio.Event()
            for process in self._processes:
                _send(process, signal.SIGTERM)

    async def _keep(self, number: int) -> None:
        loop, wait = asyncio.get_running_loop(), FIRST
        while not self._stopping.is_set():
            changed, begun = self._changed, loop.time()
            code = await self._live(number)
            if self._stopping.is_set():
                if code not in {0, -signal.SIGTERM}:  # the latter: before it could listen to signals
                    log.error("worker %d did not stop cleanly: it ended with code %d", number, code)
                    self._code = self._code or 1
            elif code == WRONG_USE:
                self.stop(code)
            elif not changed.is_set():
                if code == 0 and self._changes is None:
                    return
                wait = FIRST if loop.time() - begun > STEADY else wait
                await self._pause(number, code, wait, changed)
                wait = min(wait * 2, LIMIT)

    async def _live(self, number: int) -> int:
        """One life of a worker, in a session of its own: Ctrl-C is for us to pass on."""
        environment = {**os.environ, WORKER: str(number)}
        theirs: list[int] = []
        if self._pipe is not None:
            theirs = [self._pipe[0]]
            environment[SUPERVISED] = str(self._pipe[0])
        process = await asyncio.create_subprocess_exec(
            *self._command, start_new_session=True, env=environment, pass_fds=theirs
        )
        self._processes.add(process)
        try:
            if self._stopping.is_set():
                _send(process, signal.SIGTERM)
            return await process.wait()
        finally:
            if process.returncode is not None:
                self._processes.discard(process)

    async def _pause(self, number: int, code: int, wait: float, changed: asyncio.Event) -> None:
        if self._changes is not None:
            log.warning("worker %d ended with code %d; again when a file changes", number, code)
            await changed.wait()
            return
        log.warning("worker %d ended with code %d; again in %.3g s", number, code, wait)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._stopping.wait()


def _send(process: asyncio.subprocess.Process, number: int) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
