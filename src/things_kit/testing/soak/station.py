"""What every process of a soak has in common: its plan, its journal, its pulse, and an end when it is told to."""

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Final

import msgspec

from things_kit.engine.broker import Broker
from things_kit.messaging.errors import ThingsKitError
from things_kit.testing.soak.plan import Plan
from things_kit.testing.soak.records import Journal

PULSE: Final = 1.0
"""Seconds between two signs of life."""

LOOK: Final = 2.0
"""Seconds between two questions how the broker is, and how long an answer may take."""


class Station:
    """This process.

    Attributes:
        plan: What it is to do.
        journal: Where it writes down what it does.
        told: Set by SIGTERM.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.journal = Journal(Path(plan.folder), plan.name)
        self.told = asyncio.Event()

    @asynccontextmanager
    async def watching(
        self, broker: Broker, obey: Callable[[str], None] = lambda _: None
    ) -> AsyncIterator[None]:
        """Write down meanwhile how this process is, and what its broker says of itself; obey what we are told."""
        work = (self._pulse(), self._look(broker), self._hear(obey))
        tasks = [asyncio.create_task(each) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _hear(self, obey: Callable[[str], None]) -> None:
        """Hear what comes over the standard input. When it ends, the soak is no more, and neither are we."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        try:
            async for line in reader:
                obey(line.decode().strip())
            os._exit(1)
        finally:
            pipe.close()

    async def until_told(self, *broken: Awaitable[None]) -> None:
        """Wait for SIGTERM; raises what broke one of these before."""
        waiting = {asyncio.ensure_future(each) for each in (self.told.wait(), *broken)}
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in waiting:
                task.cancel()

    async def _pulse(self) -> None:
        while True:
            self.journal.add("pulse", figures=_figures())
            await asyncio.sleep(PULSE)

    async def _look(self, broker: Broker) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                health = await asyncio.wait_for(broker.health(), LOOK)
            except (TimeoutError, ThingsKitError) as error:
                self.journal.add("ill", text=str(error) or "no answer")
            else:
                if not health.ok:
                    self.journal.add("ill", text=health.reason or "")


class _ToJournal(logging.Handler):
    """What the library says goes where all else is written down, with its tracebacks."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.INFO)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self._journal.add("said", text=f"{record.levelname} {record.name}: {text}")


def main(work: Callable[[Station], Awaitable[None]]) -> None:
    """Do this, as the plan on the standard input says, until SIGTERM."""
    faulthandler.enable()  # a client in C that crashes is to say where
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    if plan.prepare:
        module, _, function = plan.prepare.partition(":")
        getattr(import_module(module), function)(plan)
    asyncio.run(_main(plan, work))


async def _main(plan: Plan, work: Callable[[Station], Awaitable[None]]) -> None:
    station = Station(plan)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, station.told.set)
    logger = logging.getLogger("things_kit")
    logger.addHandler(_ToJournal(station.journal))
    logger.setLevel(logging.INFO)
    logger.propagate = False
    await work(station)
    station.journal.add("ending")


def _figures() -> dict[str, float]:
    """How large this process is."""
    figures = {"threads": float(threading.active_count()), "tasks": float(len(asyncio.all_tasks()))}
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        figures["megabytes"] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        figures["files"] = float(len(os.listdir("/proc/self/fd")))  # noqa: PTH208 - twice a second
    return figures
