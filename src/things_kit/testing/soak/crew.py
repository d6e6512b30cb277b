"""The processes of a soak: started, killed, frozen and told to end; each of that is written down."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from things_kit.testing.soak.plan import BEYOND, DRAIN, Order, Plan, Role
from things_kit.testing.soak.records import Journal

ROLES: Final[tuple[tuple[Role, int], ...]] = (
    ("ordered", 3), ("free", 2), ("batch", 1), ("results", 1), ("carrier", 1), ("clerk", 1), ("producer", 2),
)  # fmt: skip

MODULES: Final = {"producer": "producer", "clerk": "clerk"}
"""The module of a role; all others are members."""

AT_LAST: Final = 15.0
"""Seconds beyond what was promised after which a process that does not end is killed."""


def names() -> list[str]:
    """All processes by role and number."""
    return [f"{role}-{n}" for role, count in ROLES for n in range(1, count + 1)]


class Running:
    """One process.

    Attributes:
        name: Its role and number, and how often it was started.
        process: What runs.
        killed: Whether we have killed it.
        told: Whether we have told it to end.
    """

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.process = process
        self.killed = False
        self.told = False
        self.following: asyncio.Task[None]


class Crew:
    """All processes."""

    def __init__(self, plan: Callable[[str, Role], Plan], folder: Path, journal: Journal) -> None:
        self._plan = plan
        self._folder = folder
        self._journal = journal
        self._starts: Counter[str] = Counter()
        self._running: dict[str, Running] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def lock(self, who: str) -> asyncio.Lock:
        """Who does something to a process holds this meanwhile."""
        return self._locks.setdefault(who, asyncio.Lock())

    def is_running(self, who: str) -> bool:
        """Whether this process is there."""
        return who in self._running

    async def start(self, who: str) -> str:
        """Start a process; returns the name of this life of it."""
        self._starts[who] += 1
        role: Role = who.partition("-")[0]  # type: ignore[assignment]
        plan = self._plan(f"{who}.{self._starts[who]}", role)
        with (self._folder / f"{plan.name}.err").open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-W", "default", "-m", f"things_kit.testing.soak.{MODULES.get(role, 'member')}",
                stdin=PIPE, stdout=DEVNULL, stderr=errors, start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(plan) + b"\n")
        running = self._running[who] = Running(plan.name, process)
        self._journal.add("started", plan.name)
        running.following = asyncio.create_task(self._follow(who, running))
        return plan.name

    async def kill(self, who: str) -> None:
        """End it at once, if it runs."""
        if (running := self._running.get(who)) is None:
            return
        running.killed = True
        with contextlib.suppress(ProcessLookupError):
            running.process.kill()
        await running.following

    async def stop(self, who: str) -> None:
        """Tell it to end, and wait until it has; kill it if it does not."""
        if (running := self._running.get(who)) is None:
            return
        self._journal.add("told", running.name)
        running.told = True
        with contextlib.suppress(ProcessLookupError):
            running.process.terminate()
        try:
            await asyncio.wait_for(asyncio.shield(running.following), DRAIN + BEYOND + AT_LAST)
        except TimeoutError:
            await self.kill(who)

    def freeze(self, who: str) -> None:
        """Let it stand still."""
        self._signal(who, signal.SIGSTOP)

    def thaw(self, who: str) -> None:
        """Let it go on."""
        self._signal(who, signal.SIGCONT)

    def _signal(self, who: str, number: signal.Signals) -> None:
        if (running := self._running.get(who)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.process.pid, number)

    def order(self, order: Order) -> None:
        """Tell all producers what to do."""
        for who in [who for who in self._running if who.startswith("producer")]:
            self.tell(who, order)

    def tell(self, who: str, order: Order) -> None:
        """Tell a producer what to do."""
        stdin = self._running[who].process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(f"{order}\n".encode())

    async def stop_all(self, role: str = "") -> None:
        """Tell all of a role to end, or all."""
        await asyncio.gather(*(self.stop(who) for who in list(self._running) if who.startswith(role)))

    async def kill_all(self) -> None:
        """End all at once; returns when they are gone."""
        await asyncio.gather(*(self.kill(who) for who in list(self._running)))

    async def _follow(self, who: str, running: Running) -> None:
        code = await running.process.wait()
        if self._running.get(who) is running:
            del self._running[who]
        if running.process.stdin is not None:
            running.process.stdin.close()
        figures = {"code": float(code), "killed": float(running.killed), "told": float(running.told)}
        self._journal.add("ended", running.name, figures=figures)
        said = (self._folder / f"{running.name}.err").read_text(errors="replace").strip()
        if said:
            self._journal.add("said", running.name, text=f"STDERR {running.name}: {said[-4000:]}")
