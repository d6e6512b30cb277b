"""One server for all test processes of this machine: the first starts it, the last ends it."""

import getpass
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from things_kit.testing.servers.guard import (
    born,
    guard,
    leave,
    living,
    lock_of,
    myself,
    read_register,
    write_register,
)
from things_kit.testing.servers.process import ServerProcess, locked

ServerT = TypeVar("ServerT", bound=ServerProcess)


class Shared(Generic[ServerT]):
    """A server that several processes use at once, such as the workers of pytest-xdist.

    Kafka needs half a gigabyte and some seconds, so one for each worker would be slower and larger than the tests.
    Who uses it is written down in a file under a lock; users that died are struck off by whoever comes next, and by the
    guard that they leave behind. Tests that kill or pause a server need one of their own.
    """

    def __init__(self, kind: Callable[[Path, list[int] | None], ServerT], name: str) -> None:
        self._kind = kind
        self._folder = Path(tempfile.gettempdir()) / f"things-kit-{getpass.getuser()}" / name

    def acquire(self) -> ServerT:
        """The running server, started if it is not. Raises what `ServerProcess.start` raises."""
        with locked(lock_of(self._folder)):
            entry = read_register(self._folder)
            if entry is None:
                shutil.rmtree(self._folder, ignore_errors=True)
                server = self._kind(self._folder, None)
                pid = server.start().detach()
                entry = {"pid": pid, "born": born(pid), "ports": server.ports, "users": []}
            guard().shared(self._folder)
            write_register(self._folder, entry, [*living(entry["users"]), myself()])
            return self._kind(self._folder, entry["ports"])

    def release(self) -> None:
        """This process needs it no more; if no other does, it is ended."""
        leave(self._folder, myself())

    def __enter__(self) -> ServerT:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
