"""A server as a process: started until it is really ready, ended with all that it started."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self

from things_kit.testing.servers import guard as guards
from things_kit.testing.servers.guard import descendants, end, guard

PORTS: Final = range(20_000, 32_768)
"""Below the ephemeral range of Linux: a client that keeps trying a dead port inside of it can be given that very port
as its own, connect to itself, and keep the server from coming back."""

WORKERS: Final = 8
"""Workers of pytest-xdist that have ports of their own each."""

_given: Final[set[int]] = set()
"""What this process has given away. A server may listen only later, or be killed and come back."""


class ServerUnavailable(Exception):
    """This machine cannot run the server; says what is missing."""


class ServerProcess(ABC):
    """One server on 127.0.0.1, with a folder and ports of its own, which it keeps through kills and restarts.

    A subclass says how its folder is prepared, what is run, and when it is ready. All methods block. It ends with the
    process that started it, however that ends, unless it was detached.

    Attributes:
        folder: Where its data and its log are.
        ports: As many as `port_count`, the first for clients.
    """

    name: ClassVar[str]
    port_count: ClassVar[int] = 1
    patience: ClassVar[float] = 60.0
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, folder: Path | None = None, ports: Sequence[int] | None = None) -> None:
        self._own_folder = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix=f"things-kit-{self.name}-")) if folder is None else folder
        self.ports = list(ports) if ports is not None else free_ports(self.port_count)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """What `connect` takes."""

    @abstractmethod
    def prepare(self) -> None:
        """Fill the folder; called before each start. Raises ServerUnavailable."""

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """What is run, in the foreground."""

    @abstractmethod
    def check(self) -> None:
        """Speak the server's protocol. Raises OSError or ValueError while it is not ready."""

    def environment(self) -> Mapping[str, str]:
        """What is set beside this process's own environment."""
        return {}

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> Self:
        """Start it, unless it runs; returns when it is ready.

        Raises:
            ServerUnavailable: It cannot be had on this machine.
            RuntimeError: It did not get ready; with the end of its log.
        """
        if self.pid is not None:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prepare()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the command is a subclass's own
                [str(word) for word in self.command()],
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt from the keyboard is for the tests, not for it
            )
        guard().server(self._process.pid, self.folder if self._own_folder else None)
        self._wait_until_ready()
        return self

    def _wait_until_ready(self) -> None:
        ends = time.monotonic() + self.patience
        problem: Exception | str = "it ended"
        while self.pid is not None and time.monotonic() < ends:
            try:
                self.check()
            except (OSError, ValueError) as error:
                problem = error
                time.sleep(0.05)
            else:
                return
        self.kill()
        raise RuntimeError(f"{self.name} did not get ready: {problem}\n{self.log()[-2000:]}")

    def log(self) -> str:
        """What it said so far."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_text(errors="replace")
        return ""

    def stop(self, within: float = 20.0) -> None:
        """Ask it to end, and kill it if it does not in time."""
        self.resume()
        if self._process is not None and self.pid is not None:
            family = descendants(self._process.pid)
            self._process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(within)
            for pid, began in family:
                end(pid, began)
        self.kill()

    def kill(self) -> None:
        """End it the hard way, with all that it started; returns when it is gone."""
        if self._process is not None:
            family = descendants(self._process.pid) if self.pid is not None else []
            self._process.kill()
            self._process.wait()
            for pid, began in family:
                end(pid, began)

    def pause(self) -> None:
        """Have it stand still with all that it started; returns when all threads do, a moment after the signal."""
        if self.pid is not None:
            for pid in self._family():
                _signal(pid, signal.SIGSTOP)
                while not _stands_still(pid):
                    time.sleep(0.002)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        if self.pid is not None:
            for pid in self._family():
                _signal(pid, signal.SIGCONT)

    def _family(self) -> list[int]:
        assert self._process is not None
        return [self._process.pid, *(pid for pid, _ in descendants(self._process.pid))]

    def detach(self) -> int:
        """Leave it running without us; returns its process id. Raises RuntimeError if it does not run."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            raise RuntimeError(f"{self.name} does not run")
        process.returncode = 0  # else Python warns that we forgot it
        guard().forget(process.pid)
        return process.pid

    def terminate(self) -> None:
        """End it for good, and delete its folder if that was made for it."""
        self.stop()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.terminate()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, nor is about to: no server of this process, of those that stand still or were killed too.

    The workers of pytest-xdist have ports of their own each, since all of them start servers at once.
    """
    mine = _ports_of(os.environ.get("PYTEST_XDIST_WORKER", ""))
    if 2 * len(_given) > len(mine):
        _given.clear()
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = random.choice(mine)  # noqa: S311 - spread, so that those who choose at once do not meet
            if port in _given:
                continue
            with contextlib.suppress(OSError):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
                _given.add(port)
                ports.append(port)
    return ports


def _ports_of(worker: str) -> range:
    """Those from which a worker of pytest-xdist chooses, called gw0, gw1, ...; all of them where there are no workers."""
    number = worker.removeprefix("gw")
    return PORTS[int(number) % WORKERS :: WORKERS] if number.isdecimal() else PORTS


def cache() -> Path:
    """Where what servers need is kept."""
    folder = os.environ.get("THINGS_KIT_SERVERS")
    return Path(folder) if folder else Path.home() / ".cache" / "things-kit"


def cached(name: str, build: Callable[[Path], Any]) -> Path:
    """A folder of the cache, filled once by `build(folder)`, also where several processes ask at once."""
    folder = cache() / name
    done = folder / ".done"
    if not done.exists():
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                build(folder)
                done.touch()
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Among all processes of this machine, one at a time is inside of this."""
    if find_spec("fcntl") is None:  # pragma: no cover - Windows
        raise ServerUnavailable("local servers need a system with fcntl: Linux or macOS")
    with guards.locked(path):
        yield


def run(*command: str | Path, **options: Any) -> str:
    """Run a command to its end. Raises ServerUnavailable if it is missing or fails, with what it said."""
    if shutil.which(str(command[0])) is None:
        raise ServerUnavailable(f"{command[0]} is not installed")
    done: subprocess.CompletedProcess[str] = subprocess.run(  # noqa: S603 - commands of ours
        [str(word) for word in command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options,
    )  # fmt: skip
    if done.returncode:
        raise ServerUnavailable(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def _stands_still(pid: int) -> bool:
    """Whether every thread is stopped. Where /proc is missing, the signal has to be believed."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return True
    return all(stat.rpartition(")")[2].split()[0] in "TZ" for stat in stats)
