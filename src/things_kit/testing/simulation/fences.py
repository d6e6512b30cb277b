"""Keeps the world outside: clocks, randomness, threads, sockets and processes, for as long as a history runs."""

import os
import random
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from things_kit.messaging.errors import ConfigError
from things_kit.testing.simulation.loop import SimulationLoop
from things_kit.testing.simulation.models.server import EPOCH
from things_kit.testing.simulation.outside import line, policy_of_uvloop, refused
from things_kit.testing.simulation.process import PROCESS, SimulatedProcess

try:
    import time_machine
except ModuleNotFoundError:
    time_machine = None  # type: ignore[assignment]

WALL: Final = time.CLOCK_REALTIME if hasattr(time, "CLOCK_REALTIME") else None
"""The only clock of the system's that is not counted from some moment of its own."""


class Escaped(Exception):
    """Code under simulation reached for what a simulation cannot have, such as a thread."""


def check_installed() -> None:
    """Raise ConfigError unless the wall clock can be fenced."""
    if time_machine is None:
        raise ConfigError('simulate() needs time-machine: pip install "things-kit[simulation]"')


class Fences:
    """What the code under simulation has in place of the world.

    It shows each process its own wall clock, and closes the databases of one that has died.
    """

    def __init__(self, loop: SimulationLoop, traveller: Any) -> None:
        self._loop = loop
        self._traveller = traveller
        self._shown = 0.0
        self._databases: list[tuple[SimulatedProcess | None, sqlite3.Connection]] = []

    def show(self, skew: float) -> None:
        """Set the wall clock for whoever goes on now."""
        now = self._loop.time() + skew
        if now != self._shown:
            self._traveller.shift(now - self._shown)
            self._shown = now

    def connect(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        """As `sqlite3.connect`; the connection goes with its process, if it is one's, else with the history."""
        connection: sqlite3.Connection = _connect(*arguments, **options)
        self._databases.append((PROCESS.get(), connection))
        return connection

    def crashed(self, process: SimulatedProcess) -> None:
        """Roll back what it had not committed, and close."""
        _close(each for owner, each in self._databases if owner is process)
        self._databases = [each for each in self._databases if each[0] is not process]

    def fall(self) -> None:
        """The history is over: the next one is to find no database that is shared by its name."""
        _close(each for _, each in self._databases)


_connect: Final = sqlite3.connect


def _close(connections: Iterable[sqlite3.Connection]) -> None:
    for connection in connections:
        with suppress(sqlite3.Error):
            connection.close()


@contextmanager
def fenced(loop: SimulationLoop, chance: random.Random) -> Iterator[Fences]:
    """Everything that a simulation can give is given by it; what it cannot have ends the history, with the line."""
    if policy_of_uvloop():
        raise Escaped(
            "a simulation has no event loop policy of uvloop: somebody has set one, as by uvloop.install()"
        )
    random_state = random.getstate()
    random.seed(chance.random())
    with ExitStack() as stack:
        fences = Fences(loop, stack.enter_context(time_machine.travel(EPOCH, tick=False)))
        for target, name, replacement in _replacements(loop, chance, fences):
            stack.callback(setattr, target, name, getattr(target, name))
            setattr(target, name, replacement)
        try:
            yield fences
        finally:
            fences.fall()
            random.setstate(random_state)


def _replacements(loop: SimulationLoop, chance: random.Random, fences: Fences) -> list[tuple[Any, str, Any]]:
    def refusing(what: str) -> Callable[..., Any]:
        def refuse(*_: Any, **__: Any) -> Any:
            error = Escaped(f"a simulation has no {what}: {line()}")
            loop.fail(error)
            raise error

        return refuse

    return [
        *_clocks(loop),
        *_randomness(chance),
        (sqlite3, "connect", fences.connect),
        (sqlite3.dbapi2, "connect", fences.connect),
        *((target, name, refusing(what)) for what, target, name in refused(loop)),
    ]


def _clocks(loop: SimulationLoop) -> Iterator[tuple[Any, str, Any]]:
    def seconds() -> float:
        return loop.time()

    def nanoseconds() -> int:
        return int(loop.time() * 1e9)

    for name in ("monotonic", "perf_counter", "process_time", "thread_time"):
        yield time, name, seconds
        yield time, f"{name}_ns", nanoseconds
    yield time, "sleep", loop.pass_time
    ctime, asctime = time.ctime, time.asctime
    yield time, "ctime", lambda seconds=None: ctime(time.time() if seconds is None else seconds)
    yield time, "asctime", lambda moment=None: asctime(time.localtime() if moment is None else moment)
    if WALL is not None:
        wall, wall_ns = time.clock_gettime, time.clock_gettime_ns
        yield time, "clock_gettime", lambda clock: wall(clock) if clock == WALL else seconds()
        yield time, "clock_gettime_ns", lambda clock: wall_ns(clock) if clock == WALL else nanoseconds()


def _randomness(chance: random.Random) -> Iterator[tuple[Any, str, Any]]:
    def urandom(size: int, flags: int = 0) -> bytes:
        return chance.randbytes(size)

    class SeededRandom(random.Random):
        """One that nobody gave a seed has one of the simulation's."""

        def __init__(self, x: Any = None) -> None:
            super().__init__(chance.random() if x is None else x)

    yield os, "urandom", urandom
    if hasattr(os, "getrandom"):
        yield os, "getrandom", urandom
    yield random, "_urandom", urandom
    yield random, "Random", SeededRandom
    yield uuid, "_generate_time_safe", None
