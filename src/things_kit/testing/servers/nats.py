"""A real NATS server with JetStream: Debian's, or whichever `nats-server` is found first."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from things_kit.testing.servers.containers import InContainer, RunningServer, address, container_or_process
from things_kit.testing.servers.debian import program
from things_kit.testing.servers.process import ServerProcess

IMAGE: Final = "nats:2.12"


class NATSServer(ServerProcess):
    """NATS on 127.0.0.1, without TLS or logins unless `settings`, lines of its configuration file, say otherwise."""

    name: ClassVar[str] = "nats"

    def __init__(
        self, folder: Path | None = None, ports: Sequence[int] | None = None, settings: str = ""
    ) -> None:
        super().__init__(folder, ports)
        self._settings = settings

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def url(self) -> str:
        """What `connect` takes, and NATS's own clients."""
        return f"nats://{self.address}"

    def prepare(self) -> None:
        """Write its configuration."""
        store = json.dumps(str(self.folder / "data"))
        (self.folder / "nats.conf").write_text(
            f"listen: {json.dumps(self.address)}\njetstream {{ store_dir: {store} }}\n{self._settings}\n"
        )

    def command(self) -> Sequence[str | Path]:
        """The server, in the foreground."""
        return [program("nats-server", "nats-server"), "-c", self.folder / "nats.conf"]

    def check(self) -> None:
        """It greets; streams are recovered before it listens."""
        with socket.create_connection(("127.0.0.1", self.ports[0]), timeout=5) as connection:
            greeting = connection.recv(4096)
        if not greeting.startswith(b"INFO "):
            raise ValueError(f"it greeted with {greeting[:20]!r}")


def start_nats_container() -> RunningServer:
    """A NATS with JetStream of the caller's own: in a container where Docker and testcontainers are, else as a process.

    Raises:
        ServerUnavailable: There is neither Docker nor a `nats-server`.
    """
    return container_or_process(
        "nats",
        lambda module: module.NatsContainer(IMAGE, jetstream=True),
        lambda container: f"nats://{address(container, 4222)}",
        NATSServer,
        InContainer,
    )
