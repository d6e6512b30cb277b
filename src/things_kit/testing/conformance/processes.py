"""Consumers in processes of their own, as the test that started them sees them."""

import asyncio
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from typing import IO, Self

import msgspec

from things_kit.testing.conformance.history import Event, History


class WorkerProcess:
    """A running `things_kit.testing.conformance.worker`.

    Attributes:
        name: Its process id, as the events of its history carry it.
        history: What its handler did, as far as it was heard.
    """

    def __init__(self, process: Process, complaints: IO[bytes]) -> None:
        self.name = str(process.pid)
        self.history = History()
        self._process = process
        self._complaints = complaints
        self._said = ""
        self._ready = asyncio.Event()
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, url: str, topic: str, group: str, **settings: float) -> Self:
        """Start one, and wait until messages can arrive there."""
        complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "things_kit.testing.conformance.worker",
            url,
            topic,
            group,
            *(f"{name}={value}" for name, value in settings.items()),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=complaints,
        )
        worker = cls(process, complaints)
        ready = asyncio.create_task(worker._ready.wait())
        await asyncio.wait({ready, worker._listening}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            if worker.alive:
                process.send_signal(signal.SIGUSR1)
                await asyncio.wait({worker._listening}, timeout=1)
            said = worker.complaints()
            await worker.kill()
            raise AssertionError(f"the worker process did not start; it said: {said}")
        return worker

    async def kill(self) -> None:
        """End it with SIGKILL, in the middle of whatever it does, and hear its last words."""
        before = time.monotonic()
        if self._process.returncode is None:
            self._process.kill()
        await self._ended()
        # Nobody else can have had its messages before this moment, and it did nothing after it.
        at = max([before, *(event.at for event in self.history.events)])
        self.history.events.append(Event("killed", "", worker=self.name, at=at))

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.returncode is None

    async def stop(self) -> None:
        """Have it drain and end, as by SIGTERM.

        Raises:
            AssertionError: It did not end well.
        """
        if self._process.returncode is None:
            self._process.terminate()
        said = await self._ended()
        assert self._process.returncode == 0, (
            f"the worker ended with {self._process.returncode}; it said: {said}"
        )

    def complaints(self) -> str:
        """The end of what it wrote to its standard error."""
        if not self._complaints.closed:
            self._complaints.seek(0)
            self._said = self._complaints.read().decode(errors="replace")[-3000:]
        return self._said

    async def _ended(self) -> str:
        await asyncio.wait_for(self._process.wait(), 30)
        await asyncio.wait_for(self._listening, 30)
        said = self.complaints()
        self._complaints.close()
        return said

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._ready.set()  # by whichever line: a message may kill it before it can say that it is ready
            if line != b"ready\n" and line.endswith(b"\n"):  # a killed process may leave half a line
                event = msgspec.json.decode(line, type=Event)
                self.history.events.append(msgspec.structs.replace(event, worker=self.name))
