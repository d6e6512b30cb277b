"""Where a system cannot fork, histories run in this process: what their crashes abandon is as dead, and as quiet."""

import asyncio
import gc
import logging
import multiprocessing
import random
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.testing.simulation.test_simulate import Losing, Undying
from things_kit import Message
from things_kit.engine.broker import Broker
from things_kit.testing import Faults, SimulationFailed, World, reached, simulate
from things_kit.testing.simulation.remains import unheard
from things_kit.testing.simulation.report import Report

ROOT = Path(__file__).parents[3]

CRASH = Faults.only("crash")


@pytest.fixture
def no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])


class Loud(World):
    """A handler that has much to say if it is closed amid its work."""

    worlds: ClassVar[weakref.WeakSet[World]] = weakref.WeakSet()

    async def setup(self) -> None:
        self.worlds.add(self)
        self.open = self.closed = 0

    def consumers(self, broker: Broker) -> list[Any]:
        return [broker.consumer("orders", group="g", handler=self.handle, concurrency=4)]

    async def handle(self, message: Message) -> None:
        never_awaited = asyncio.sleep(1)
        self.open += 1
        try:
            async for _ in self.parts():
                await asyncio.sleep(5)
            self.open -= 1
        except GeneratorExit:
            self.closed += 1
            logging.getLogger("shop").critical("it goes on")
            print("it goes on")
            await asyncio.sleep(1)
            raise ValueError("it goes on") from None
        await never_awaited

    async def parts(self) -> AsyncIterator[int]:
        try:
            for number in range(2):
                yield number
        finally:
            await asyncio.sleep(1)

    async def workload(self, producer: Any) -> None:
        await producer.publish_batch([Message("orders", b"%d" % number) for number in range(4)])

    def eventually(self) -> None:
        self.history.nothing_lost()
        assert not self.closed
        if self.open:
            reached("died amid a handler")


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is said meanwhile by the ways that a program has beside its output."""
    with unheard():
        gc.collect()  # what other tests have left behind
    said: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: said.append(repr(unraisable)))
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    logging.root.addHandler(handler)
    yield said
    logging.root.removeHandler(handler)


@pytest.mark.usefixtures("no_fork")
def test_what_a_crash_abandons_is_never_heard_of_again(
    heard: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    simulate(Loud, seeds=12, broker="redis", faults=CRASH, sometimes=["died amid a handler"])
    gc.collect()
    assert heard == []
    assert capfd.readouterr() == ("", "")
    assert len(Loud.worlds) == 0


def failure() -> Report:
    with pytest.raises(SimulationFailed, match="handled") as raised:
        simulate(Losing, seeds=1, faults=Faults.none())
    return raised.value.report


def test_histories_are_the_same(request: pytest.FixtureRequest) -> None:
    passing, failing = simulate(Undying, seeds=12, broker="sqlite"), failure()
    random.seed(3)
    before = random.getstate(), gc.isenabled(), logging.root.manager.disable
    request.getfixturevalue("no_fork")
    assert simulate(Undying, seeds=12, broker="sqlite") == passing
    again = failure()
    assert (again.hash, again.history) == (failing.hash, failing.history)
    assert (random.getstate(), gc.isenabled(), logging.root.manager.disable) == before


AS_ON_WINDOWS = """
import asyncio, multiprocessing, os, subprocess, sys

for name in ("_posixsubprocess", "fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp"):
    delattr(os, name)
multiprocessing.get_all_start_methods = lambda: ["spawn"]

from examples.simulation import Careful, simulate

print(simulate(Careful, seeds=3).histories)
"""


def test_what_only_unix_has_is_not_needed() -> None:
    command = [sys.executable, "-W", "error", "-c", AS_ON_WINDOWS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("3\n", "")


@pytest.mark.usefixtures("no_fork")
async def test_the_loop_of_whoever_simulates_goes_on() -> None:
    loop = asyncio.get_running_loop()
    simulate(Undying, seeds=2, broker="sqlite")
    assert asyncio.get_running_loop() is loop
    assert await asyncio.sleep(0, "on")
