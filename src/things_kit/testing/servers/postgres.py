"""A real PostgreSQL: a broker, and for handlers that write to a database."""

import os
import secrets
import signal
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from things_kit.testing.servers import debian
from things_kit.testing.servers.containers import InContainer, RunningServer, address, container_or_process
from things_kit.testing.servers.process import ServerProcess, ServerUnavailable, run

if TYPE_CHECKING:
    import pwd

IMAGE: Final = "postgres:17"

USER: Final = "postgres"
"""Who logs in; and as whom it runs where root starts it, which it refuses to be. The package makes this user."""


class PostgresServer(ServerProcess):
    """PostgreSQL on 127.0.0.1, which lets everybody of this machine in as `postgres`."""

    name: ClassVar[str] = "postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT
    """By SIGTERM it waits for its clients to go."""

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.ports[0]

    @property
    def url(self) -> str:
        """What clients take."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new database, dropped afterwards."""
        name = f"test_{secrets.token_hex(8)}"
        self._do("createdb", name)
        try:
            yield f"{self.url.rpartition('/')[0]}/{name}"
        finally:
            self._do("dropdb", "--force", name)

    def _do(self, program: str, *words: str) -> None:
        run(
            self.program(program),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--username",
            USER,
            *words,
        )

    def prepare(self) -> None:
        """The program, and the files of a new cluster."""
        programs = self._programs()
        data = self.folder / "data"
        if data.exists():
            return
        data.mkdir(mode=0o700)
        if os.getuid() == 0:
            user = server_user()
            for folder in (self.folder, data):
                os.chown(folder, user.pw_uid, user.pw_gid)
        words = ("--username", USER, "--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync")
        run(*as_user(), programs / "initdb", "--pgdata", data, *words, cwd=self.folder)

    def command(self) -> Sequence[str | Path]:
        """The server, in the foreground."""
        words = ("-D", self.folder / "data", "-h", "127.0.0.1", "-p", str(self.port), "-k", "")
        return [*as_user(), self.program("postgres"), *words]

    def program(self, name: str) -> Path:
        """One of the programs that come with it. Raises ServerUnavailable."""
        return self._programs() / name

    @staticmethod
    def _programs() -> Path:
        return debian.program("postgres", "postgresql").resolve().parent

    def check(self) -> None:
        """It lets us in."""
        said = f"user\0{USER}\0database\0postgres\0\0".encode()
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(struct.pack("!ii", len(said) + 8, 3 << 16) + said)
            answer = connection.recv(1024)
        if not answer.startswith(b"R"):
            raise ValueError(f"the login was answered with {answer!r}")


def as_user() -> Sequence[str]:
    """The beginning of a command that is to run as somebody else than root."""
    if os.getuid() != 0:
        return ()
    user = server_user()
    return ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--")


def server_user() -> "pwd.struct_passwd":
    """Who runs the server where root starts it. Raises ServerUnavailable if there is nobody of that name."""
    import pwd  # noqa: PLC0415 - Windows has none

    try:
        return pwd.getpwnam(USER)
    except KeyError:
        raise ServerUnavailable(f"PostgreSQL does not run as root, and there is no user {USER!r}") from None


def start_postgres_container() -> RunningServer:
    """A PostgreSQL of the caller's own: in a container where Docker and testcontainers are, else as a local process.

    Raises:
        ServerUnavailable: There is neither Docker nor PostgreSQL.
    """
    return container_or_process(
        "postgres",
        lambda module: module.PostgresContainer(IMAGE, username=USER, password=USER, dbname=USER),
        lambda container: f"postgresql://{USER}:{USER}@{address(container, 5432)}/{USER}",
        PostgresServer,
        InContainer,
    )
