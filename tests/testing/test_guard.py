"""Servers end with whoever started them, however that ends."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import pytest

from things_kit.testing.servers import ServerProcess
from things_kit.testing.servers.guard import born, end, read_register


class Sleeper(ServerProcess):
    """A server that serves nothing, and has a child that has left its process group."""

    name: ClassVar[str] = "sleeper"

    @property
    def url(self) -> str:
        return "sleeper://"

    def prepare(self) -> None:
        (self.folder / "data").touch()

    def command(self) -> Sequence[str]:
        return ["/bin/sh", "-c", "setsid sleep 600 & echo $! > child; wait"]

    def check(self) -> None:
        if not (self.folder / "child").exists() or not (self.folder / "child").read_text().strip():
            raise ValueError("not yet")


OWNER = """
import sys
from pathlib import Path
from tests.testing.test_guard import Sleeper
from things_kit.testing.servers import Shared

class Named(Shared):
    def __init__(self, folder):
        super().__init__(Sleeper, "sleeper")
        self._folder = folder

if {shared}:
    Named(Path({folder!r})).acquire()
    print("ready", flush=True)
else:
    server = Sleeper().start()
    print(server.pid, server.folder, flush=True)
sys.stdin.read()
"""

Owner = Callable[[bool], tuple["subprocess.Popen[str]", list[str]]]


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    """Starts a process that starts a server; returns it with what it said."""
    with ExitStack() as started:

        def start(shared: bool) -> tuple["subprocess.Popen[str]", list[str]]:
            program = OWNER.format(shared=shared, folder=str(tmp_path / "sleeper"))
            process = started.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            started.callback(process.kill)
            assert process.stdout is not None
            return process, process.stdout.readline().split()

        yield start


def until_gone(pid: int, began: str | None, within: float = 30.0) -> None:
    ends = time.monotonic() + within
    while born(pid) == began is not None:
        if time.monotonic() > ends:
            end(pid, began)
            pytest.fail("it outlived its owner")
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["kill", "terminate", "leave"])
def test_a_server_ends_with_its_owner(owner: Owner, how: str) -> None:
    process, (number, folder) = owner(False)
    pid, child = int(number), int((Path(folder) / "child").read_text())
    births = born(pid), born(child)
    assert None not in births
    if how == "leave":  # without having terminated its server
        assert process.stdin is not None
        process.stdin.close()
    else:
        getattr(process, how)()
    until_gone(pid, births[0])
    until_gone(child, births[1])
    ends = time.monotonic() + 30
    while Path(folder).exists():
        assert time.monotonic() < ends, "its folder is still there"
        time.sleep(0.01)


def test_a_server_that_stands_still_ends_with_its_owner(owner: Owner) -> None:
    process, (number, _) = owner(False)
    pid = int(number)
    subprocess.run(["kill", "-STOP", number], check=True)
    began = born(pid)
    process.kill()
    until_gone(pid, began)


def test_a_shared_server_ends_with_the_last_of_its_users(owner: Owner, tmp_path: Path) -> None:
    first, _ = owner(True)
    second, _ = owner(True)
    entry = read_register(tmp_path / "sleeper")
    assert entry is not None
    first.kill()
    first.wait()
    ends = time.monotonic() + 30
    while len(users := (read_register(tmp_path / "sleeper") or {"users": []})["users"]) != 1:
        assert time.monotonic() < ends, users
        time.sleep(0.01)
    assert born(entry["pid"]) == entry["born"], "it ended though somebody uses it"
    second.kill()
    until_gone(entry["pid"], entry["born"])
