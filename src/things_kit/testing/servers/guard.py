"""Ends servers whose owner has died, however it died: the owner holds a pipe, and its end is read by a process of its own.

This file is that process's program too. It is run by its path, so it imports nothing but the standard library.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

GRACE: Final = 20.0
"""Seconds that a shared server has to end by itself."""

REGISTER: Final = "users.json"
"""The file of a shared server that says who uses it."""


class Guard:
    """What this process has told its guard: the guard ends all of it as soon as this process is no more."""

    def __init__(self) -> None:
        ours, theirs = os.pipe()
        self._pipe: int | None = theirs
        program = [sys.executable, "-E", "-s", __file__]
        process = subprocess.Popen(program, stdin=ours, start_new_session=True)  # noqa: S603 - this very file
        process.returncode = 0  # it outlives us: nobody waits for it
        os.close(ours)
        os.register_at_fork(after_in_child=self._let_go)

    def server(self, pid: int, folder: Path | None) -> None:
        """This server is ours, and so is its folder, if one is given."""
        self._say({"server": pid, "born": born(pid), "folder": None if folder is None else str(folder)})

    def forget(self, pid: int) -> None:
        """This server is somebody else's now, or has ended."""
        self._say({"forget": pid})

    def shared(self, folder: Path) -> None:
        """We are a user of the shared server that has this folder."""
        self._say({"shared": str(folder), "user": myself()})

    def _let_go(self) -> None:
        """In a process that was forked: it is not the owner."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _say(self, what: dict[str, Any]) -> None:
        assert self._pipe is not None
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, json.dumps(what).encode() + b"\n")


def guard() -> Guard:
    """The guard of this process."""
    return _guard_of(os.getpid())


@functools.cache
def _guard_of(pid: int) -> Guard:
    return Guard()


def myself() -> list[Any]:
    """This process, as the register of a shared server names it."""
    return [os.getpid(), born(os.getpid())]


def living(users: list[list[Any]]) -> list[list[Any]]:
    """Those users of a shared server that still are."""
    return [user for user in users if born(user[0]) == user[1] is not None]


def read_register(folder: Path) -> dict[str, Any] | None:
    """The register of a shared server that runs; None if none does."""
    try:
        entry: dict[str, Any] = json.loads((folder / REGISTER).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return entry if born(entry["pid"]) == entry["born"] is not None else None


def write_register(folder: Path, entry: dict[str, Any], users: list[list[Any]]) -> None:
    """Note who uses a shared server."""
    (folder / REGISTER).write_text(json.dumps({**entry, "users": users}))


def leave(folder: Path, user: list[Any]) -> None:
    """This user needs a shared server no more; if no other does, it is ended, and its folder deleted."""
    with locked(lock_of(folder)):
        entry = read_register(folder)
        if entry is None:
            return
        users = living(entry["users"])
        if user in users:
            users.remove(user)  # once: it may have asked several times
        if users:
            write_register(folder, entry, users)
        else:
            _end_gently(entry["pid"], entry["born"])
            shutil.rmtree(folder, ignore_errors=True)


def lock_of(folder: Path) -> Path:
    """Whoever changes something about the shared server of this folder holds this lock."""
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Among all processes of this machine, one at a time is inside of this."""
    import fcntl  # noqa: PLC0415 - Windows has none

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def descendants(pid: int) -> list[tuple[int, str]]:
    """The processes that a process started, and those that they did, each with when it began.

    They may have left its process group, as Erlang's and PostgreSQL's do. Where /proc is missing, none are known.
    """
    parents: dict[int, list[tuple[int, str]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append((int(path.parent.name), fields[19]))
    found = parents.get(pid, [])
    for child, _ in found:
        found = [*found, *descendants(child)]
    return found


def born(pid: int | None) -> str | None:
    """When a process began, so that another with the same number is not taken for it; None if there is none."""
    if pid is None:
        return None
    with contextlib.suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else fields[18]
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return "?"


def end(pid: int, began: str) -> None:
    """End a process the hard way, unless another one has its number by now; returns when it is gone."""
    while born(pid) == began:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _reap(pid)
        time.sleep(0.005)


def end_family(pid: int, began: str) -> None:
    """End a process the hard way, with all that it started."""
    if born(pid) == began:
        family = descendants(pid)
        end(pid, began)
        for child, since in family:
            end(child, since)


def _end_gently(pid: int, began: str) -> None:
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


def main() -> None:
    """Listen until the owner is gone, then end what it has left."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # they are for the owner, whose end we wait for
        signal.signal(number, signal.SIG_IGN)
    servers: dict[int, tuple[str, str | None]] = {}
    shared: dict[str, list[Any]] = {}
    for line in sys.stdin:
        match json.loads(line):
            case {"server": pid, "born": began, "folder": folder}:
                servers[pid] = (began, folder)
            case {"forget": pid}:
                servers.pop(pid, None)
            case {"shared": folder, "user": user}:
                shared[folder] = user
    for pid, (began, folder) in servers.items():
        end_family(pid, began)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    for folder, user in shared.items():
        leave(Path(folder), user)


if __name__ == "__main__":
    main()
