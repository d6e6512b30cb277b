"""Keeps the world outside: clocks, randomness, threads, sockets and processes, for as long as a history runs."""

import os
import random
import socket
import subprocess
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from things_kit.messaging.errors import ConfigError
from things_kit.testing.simulation.loop import SimulationLoop
from things_kit.testing.simulation.models.server import EPOCH

try:
    import time_machine
except ModuleNotFoundError:
    time_machine = None  # type: ignore[assignment]


class Escaped(Exception):
    """Code under simulation reached for what a simulation cannot have, such as a thread."""


def check_installed() -> None:
    """Raise ConfigError unless the wall clock can be fenced."""
    if time_machine is None:
        raise ConfigError('simulate() needs time-machine: pip install "things-kit[simulation]"')


class WallClock:
    """Shows each process its own time, which goes with the loop's."""

    def __init__(self, loop: SimulationLoop, traveller: Any) -> None:
        self._loop = loop
        self._traveller = traveller
        self._shown = 0.0

    def show(self, skew: float) -> None:
        """Set it for whoever goes on now."""
        now = self._loop.time() + skew
        if now != self._shown:
            self._traveller.shift(now - self._shown)
            self._shown = now


@contextmanager
def fenced(loop: SimulationLoop, chance: random.Random) -> Iterator[WallClock]:
    """Everything that a simulation can give is given by it; what it cannot have ends the history, with the line."""
    random_state = random.getstate()
    random.seed(chance.random())
    with ExitStack() as stack:
        traveller = stack.enter_context(time_machine.travel(EPOCH, tick=False))
        for target, name, replacement in _replacements(loop, chance):
            stack.callback(setattr, target, name, getattr(target, name))
            setattr(target, name, replacement)
        try:
            yield WallClock(loop, traveller)
        finally:
            random.setstate(random_state)


def _replacements(loop: SimulationLoop, chance: random.Random) -> list[tuple[Any, str, Any]]:
    def monotonic() -> float:
        return loop.time()

    def monotonic_ns() -> int:
        return int(loop.time() * 1e9)

    def urandom(size: int) -> bytes:
        return chance.randbytes(size)

    class SeededRandom(random.Random):
        """One that nobody gave a seed has one of the simulation's."""

        def __init__(self, x: Any = None) -> None:
            super().__init__(chance.random() if x is None else x)

    def refusing(what: str) -> Callable[..., Any]:
        def refuse(*_: Any, **__: Any) -> Any:
            error = Escaped(f"a simulation has no {what}: {_line()}")
            loop.fail(error)
            raise error

        return refuse

    return [
        (time, "monotonic", monotonic),
        (time, "monotonic_ns", monotonic_ns),
        (time, "perf_counter", monotonic),
        (time, "perf_counter_ns", monotonic_ns),
        (time, "sleep", loop.pass_time),
        (os, "urandom", urandom),
        (random, "_urandom", urandom),
        (random, "Random", SeededRandom),
        (uuid, "_generate_time_safe", None),
        (threading.Thread, "start", refusing("threads")),
        (socket.socket, "connect", refusing("sockets")),
        (socket.socket, "bind", refusing("sockets")),
        (socket, "create_connection", refusing("sockets")),
        (subprocess, "Popen", refusing("subprocesses")),
        (os, "fork", refusing("subprocesses")),
    ]


def _line() -> str:
    """Where the code under simulation is: the innermost frame that is neither ours nor the library's that it called."""
    own = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_stack()):
        inside = frame.filename.startswith(own) or frame.filename in {
            threading.__file__, socket.__file__, subprocess.__file__,
        }  # fmt: skip
        if not inside and f"{os.sep}concurrent{os.sep}futures{os.sep}" not in frame.filename:
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return "somewhere"
