"""The worker processes of the demo: start, freeze, kill and stop them."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from things_kit.cli.demo.plan import ARMED, HOLD, HOLDING, READY, RESUME, Plan
from things_kit.cli.running import CommandFailed

PATIENCE: Final = 10.0
"""Seconds that a worker may take to drain before it is killed."""


class Worker:
    """One worker process, as the demo sees it.

    Attributes:
        name: What it is called.
        pid: Its process id.
        killed: Whether it was us who ended it.
    """

    def __init__(
        self, name: str, process: Process, log: Path, heard: Callable[["Worker", str], None]
    ) -> None:
        self.name = name
        self.pid = process.pid
        self.killed = False
        self.stopping = False
        self._process = process
        self._log = log
        self._heard = heard
        self.ended = asyncio.create_task(self._follow())

    @property
    def running(self) -> bool:
        """Whether the process is still there."""
        return self._process.returncode is None

    def tell(self, words: str) -> None:
        """Give it an order."""
        if self._process.stdin is not None and self.running:
            self._process.stdin.write(f"{words}\n".encode())

    def kill(self) -> None:
        """SIGKILL: it has no chance to finish or to say anything."""
        self.killed = True
        with suppress(ProcessLookupError):
            self._process.kill()

    def hang_up(self) -> None:
        """There will be no more orders."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def stop(self) -> None:
        """Let it finish what it has begun; then it ends."""
        self.stopping = True
        self.hang_up()
        try:
            await asyncio.wait_for(asyncio.shield(self.ended), PATIENCE)
        finally:
            if self.running:
                self.kill()

    async def _follow(self) -> None:
        if self._process.stdout is not None:
            async for line in self._process.stdout:
                self._heard(self, line.decode().strip())
        code = await self._process.wait()
        if self.killed or (self.stopping and code == 0):
            return
        said = self._log.read_text(errors="replace").strip().splitlines()
        why = f": {said[-1]}" if said and code > 0 else ""
        raise CommandFailed(f"{self.name} (process {self.pid}) ended by itself with exit code {code}{why}")


class Crew:
    """All workers.

    Attributes:
        failed: Fails when a worker ends though nobody told it to.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.workers: list[Worker] = []
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._plan = plan
        self._folder = folder
        self._heard: dict[str, asyncio.Queue[tuple[Worker, str]]] = {
            words: asyncio.Queue() for words in (READY, ARMED, HOLDING)
        }

    async def start(self, number: int) -> None:
        """Start so many more; returns once they consume."""
        for _ in range(number):
            self.workers.append(await self._started(f"worker {len(self.workers) + 1}"))
        for _ in range(number):
            await self._heard[READY].get()

    async def hold(self) -> None:
        """Order all to freeze in the middle of their next message; returns once they know."""
        running = [worker for worker in self.workers if worker.running]
        for worker in running:
            worker.tell(HOLD)
        for _ in running:
            await self._heard[ARMED].get()

    async def kill_first_holding(self) -> tuple[Worker, str]:
        """Kill the first that is frozen, and let the others go on. Returns it, and the message it had in hand."""
        victim, message_id = await self._heard[HOLDING].get()
        victim.kill()
        for worker in self.workers:
            worker.tell(RESUME)
        await victim.ended
        return victim, message_id

    async def stop(self) -> None:
        """Stop all. Cancelled meanwhile, or if one does not end in time, kill."""
        try:
            await asyncio.gather(*(worker.stop() for worker in self.workers))
        except TimeoutError:
            raise CommandFailed(f"a worker did not stop within {PATIENCE:g} seconds") from None
        finally:
            await self.kill()

    async def kill(self) -> None:
        """End all at once; returns when they are gone, and their pipes closed."""
        for worker in self.workers:
            if worker.running:
                worker.kill()
            worker.hang_up()
        await asyncio.gather(*(worker.ended for worker in self.workers), return_exceptions=True)

    async def _started(self, name: str) -> Worker:
        log = self._folder / f"{name.replace(' ', '-')}.log"
        with log.open("wb") as stderr:
            # In a session of its own, as Ctrl-C is for the demo to deal with.
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "things_kit.cli.demo.worker",
                stdin=PIPE,
                stdout=PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        worker = Worker(name, process, log, self._hear)
        worker.ended.add_done_callback(self._has_ended)
        worker.tell(msgspec.json.encode(msgspec.structs.replace(self._plan, worker=name)).decode())
        return worker

    def _hear(self, worker: Worker, words: str) -> None:
        word, _, rest = words.partition(" ")
        if word in self._heard:
            self._heard[word].put_nowait((worker, rest))

    def _has_ended(self, ended: asyncio.Task[None]) -> None:
        error = None if ended.cancelled() else ended.exception()
        if error is not None and not self.failed.done():
            self.failed.set_exception(error)
