"""One server for all test processes of this machine: the first starts it, the last ends it."""

import contextlib
import getpass
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

from things_kit.testing.servers.process import ServerProcess, born, descendants, end, locked

ServerT = TypeVar("ServerT", bound=ServerProcess)

GRACE: Final = 20.0
"""Seconds that a shared server has to end by itself."""


class Shared(Generic[ServerT]):
    """A server that several processes use at once, such as the workers of pytest-xdist.

    Kafka needs half a gigabyte and some seconds, so one for each worker would be slower and larger than the tests.
    Who uses it is written down in a file under a lock; users that died are struck off by whoever comes next. Tests that
    kill or pause a server need one of their own.
    """

    def __init__(self, kind: Callable[[Path, list[int] | None], ServerT], name: str) -> None:
        self._kind = kind
        self._folder = Path(tempfile.gettempdir()) / f"things-kit-{getpass.getuser()}" / name
        self._lock = self._folder.with_name(f".{name}.lock")
        self._register = self._folder / "users.json"

    def acquire(self) -> ServerT:
        """The running server, started if it is not. Raises what `ServerProcess.start` raises."""
        with locked(self._lock):
            entry = self._read()
            if entry is None:
                shutil.rmtree(self._folder, ignore_errors=True)
                server = self._kind(self._folder, None)
                pid = server.start().detach()
                entry = {"pid": pid, "born": born(pid), "ports": server.ports, "users": []}
            self._write(entry, [*_living(entry["users"]), [os.getpid(), born(os.getpid())]])
            return self._kind(self._folder, entry["ports"])

    def release(self) -> None:
        """This process needs it no more; if no other does, it is ended."""
        with locked(self._lock):
            entry = self._read()
            if entry is None:
                return
            users = _living(entry["users"])
            me = [os.getpid(), born(os.getpid())]
            if me in users:
                users.remove(me)
            if users:
                self._write(entry, users)
            else:
                _end(entry["pid"], entry["born"])
                shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> ServerT:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _read(self) -> dict[str, Any] | None:
        try:
            entry: dict[str, Any] = json.loads(self._register.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return entry if born(entry["pid"]) == entry["born"] is not None else None

    def _write(self, entry: dict[str, Any], users: list[list[Any]]) -> None:
        self._register.write_text(json.dumps({**entry, "users": users}))


def _living(users: list[list[Any]]) -> list[list[Any]]:
    return [user for user in users if born(user[0]) == user[1] is not None]


def _end(pid: int, began: str) -> None:
    family = descendants(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        ends = time.monotonic() + GRACE
        while born(pid) == began:
            _reap(pid)
            if time.monotonic() > ends:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
    for child, since in family:
        end(child, since)


def _reap(pid: int) -> None:
    """If it is our child, its end must be taken note of."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
