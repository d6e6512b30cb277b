"""A real Redis: one server, a master with its replica, or the nodes of a cluster."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, ClassVar, Final

from things_kit.testing.servers import debian
from things_kit.testing.servers.containers import InContainer, RunningServer, address, container_or_process
from things_kit.testing.servers.process import ServerProcess

IMAGE: Final = "redis:7.2"

SETTINGS: Final = ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec")
"""Every write is in the file before it is answered, so that a killed process has lost nothing."""


class RedisServer(ServerProcess):
    """Redis on 127.0.0.1, which keeps an append-only file; `settings` are further words of its command line.

    `program` is another server of the same kind, such as Valkey's.
    """

    name: ClassVar[str] = "redis"

    def __init__(
        self,
        folder: Path | None = None,
        ports: Sequence[int] | None = None,
        settings: Sequence[str | Path] = (),
        program: Path | None = None,
    ) -> None:
        super().__init__(folder, ports)
        self._settings = settings
        self._program = program

    @property
    def port(self) -> int:
        """Where it listens, without TLS."""
        return self.ports[0]

    @property
    def url(self) -> str:
        """What `connect` takes."""
        return f"redis://127.0.0.1:{self.port}/0"

    def prepare(self) -> None:
        """Nothing but the program."""
        if self._program is None:
            self._program = debian.program("redis-server", "redis-server")

    def command(self) -> Sequence[str | Path]:
        """The server, in the foreground."""
        assert self._program is not None
        words = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.folder)
        return [self._program, *words, *SETTINGS, *self._settings]

    def check(self) -> None:
        """An answer to PING that is not that it is loading; one that asks for a login will do."""
        answer = self.ask("PING")
        if not answer.startswith(("+PONG", "-NOAUTH")):
            raise ValueError(f"PING was answered with {answer!r}")

    def ask(self, *words: str) -> str:
        """The first line of the answer to a command, as the protocol has it."""
        return self._answer(words, lambda file: [_line(file)])[0]

    def lines(self, *words: str) -> list[str]:
        """All lines of the answer to a command."""
        return self._answer(words, _whole)

    def _answer(self, words: Sequence[str], read: Callable[[BinaryIO], list[bytes]]) -> list[str]:
        request = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request.encode())
            with connection.makefile("rb") as file:
                lines = read(file)
        return [line.decode(errors="replace").rstrip() for line in lines]


def _line(file: BinaryIO) -> bytes:
    line = file.readline()
    if not line:
        raise ConnectionError("it hung up")
    return line


def _whole(file: BinaryIO) -> list[bytes]:
    """The lines of an answer, or of the parts of one that is an array."""
    line = _line(file)
    kind, rest = line[:1], line[1:].strip()
    if kind == b"$" and rest != b"-1":
        return file.read(int(rest) + 2).splitlines()
    if kind == b"*":
        return [part for _ in range(int(rest)) for part in _whole(file)]
    return [line]


def start_redis_container() -> RunningServer:
    """A Redis of the caller's own: in a container where Docker and testcontainers are, else as a local process.

    Raises:
        ServerUnavailable: There is neither Docker nor redis-server.
    """
    return container_or_process(
        "redis",
        lambda module: module.RedisContainer(IMAGE),
        lambda container: f"redis://{address(container, 6379)}/0",
        RedisServer,
        InContainer,
    )
