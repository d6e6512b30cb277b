"""A real RabbitMQ: one node, without plugins."""

import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from things_kit.testing.servers.containers import InContainer, RunningServer, address, container_or_process
from things_kit.testing.servers.debian import program
from things_kit.testing.servers.process import ServerProcess, run

IMAGE: Final = "rabbitmq:4"

PROTOCOL: Final = b"AMQP\x00\x00\x09\x01"
"""What a client of AMQP 0-9-1 says first."""

SETTINGS: Final[Mapping[str, str]] = {
    "loopback_users": "none",
    # The alarms, which block publishers, are for machines that RabbitMQ has to itself
    "disk_free_limit.absolute": "1MB",
    "vm_memory_high_watermark.relative": "0.9",
}


class RabbitMQServer(ServerProcess):
    """RabbitMQ on 127.0.0.1, with the login guest:guest. Needs Erlang and RabbitMQ, which Debian has as packages."""

    name: ClassVar[str] = "rabbitmq"
    port_count: ClassVar[int] = 4
    plugins: ClassVar[Sequence[str]] = ()

    def __init__(
        self,
        folder: Path | None = None,
        ports: Sequence[int] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, ports)
        self._settings = {**SETTINGS, **(settings or {})}

    @property
    def url(self) -> str:
        """What `connect` takes."""
        return f"amqp://guest:guest@127.0.0.1:{self.ports[0]}/"

    @property
    def secure_port(self) -> int:
        """A port for one more listener, which `settings` may declare."""
        return self.ports[3]

    def prepare(self) -> None:
        """Write its configuration."""
        text = "".join(f"{name} = {value}\n" for name, value in self._settings.items())
        (self.folder / "rabbitmq.conf").write_text(text)
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].\n")

    def command(self) -> Sequence[str | Path]:
        """The node, in the foreground, with the name server of Erlang beside it."""
        server = _plain(program("rabbitmq-server", "rabbitmq-server"))
        epmd = program("epmd", "erlang-base")
        # Left to itself, Erlang would start one in the background that outlives the test
        both = f'"{epmd}" -address 127.0.0.1 -port {self.ports[2]} & exec "$0"'
        return ["/bin/sh", "-c", both, server]

    def environment(self) -> Mapping[str, str]:
        """All that RabbitMQ would otherwise look for in the system's folders."""
        folder = self.folder
        return {
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self.ports[2]),
            "RABBITMQ_NODENAME": f"things-kit-{self.ports[0]}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.ports[0]),
            "RABBITMQ_DIST_PORT": str(self.ports[1]),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_SCHEMA_DIR": str(folder / "schema"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def check(self) -> None:
        """Log in and open the virtual host: the port accepts long before."""
        with socket.create_connection(("127.0.0.1", self.ports[0]), timeout=5) as connection:
            connection.sendall(PROTOCOL)
            with connection.makefile("rb") as file:
                _expect(file, 10, 10)
                login = b"\x00guest\x00guest"
                start = struct.pack(">IB5sI", 0, 5, b"PLAIN", len(login)) + login + b"\x05en_US"
                connection.sendall(_method(10, 11, start))
                _expect(file, 10, 30)
                connection.sendall(_method(10, 31, struct.pack(">HIH", 2047, 131072, 0)))
                connection.sendall(_method(10, 40, b"\x01/\x00\x00"))
                _expect(file, 10, 41)
                connection.sendall(_method(10, 50, struct.pack(">HBHH", 200, 0, 0, 0)))
                _expect(file, 10, 51)

    def control(self, *words: str) -> str:
        """Run `rabbitmqctl` for this node; returns what it said."""
        tool = _plain(program("rabbitmqctl", "rabbitmq-server"))
        return run(tool, *words, env={**os.environ, **self.environment()})

    def kill(self) -> None:
        """As of any server, once it would know its queues again: the names of new ones reach its disk a moment later."""
        folders = self.folder / "data" / str(self.environment()["RABBITMQ_NODENAME"]) / "quorum"
        ends = time.monotonic() + 5
        while self.pid is not None and time.monotonic() < ends and not _written(folders):
            time.sleep(0.05)
        super().kill()

    def cut(self) -> None:
        """Close all connections that there are."""
        self.control("close_all_connections", "--global", "as the test wanted")


def start_rabbitmq_container() -> RunningServer:
    """A RabbitMQ of the caller's own: in a container where Docker and testcontainers are, else as a local process.

    Raises:
        ServerUnavailable: There is neither Docker nor what the process needs.
    """
    return container_or_process(
        "rabbitmq",
        lambda module: module.RabbitMqContainer(IMAGE),
        lambda container: f"amqp://guest:guest@{address(container, 5672)}/",
        RabbitMQServer,
        InContainer,
    )


def _plain(found: Path) -> Path:
    """Not Debian's own wrapper, which changes the user and the folder."""
    plain = Path("/usr/lib/rabbitmq/bin", found.name)
    return plain if found.parent == Path("/usr/sbin") and plain.exists() else found


def _written(folders: Path) -> bool:
    """Whether each quorum queue that has a folder is in the list by which RabbitMQ finds it again."""
    for names in folders.glob("*/names.dets"):
        known = names.read_bytes()
        if any(each.is_dir() and each.name.encode() not in known for each in names.parent.iterdir()):
            return False
    return True


def _method(of: int, number: int, arguments: bytes) -> bytes:
    payload = struct.pack(">HH", of, number) + arguments
    return struct.pack(">BHI", 1, 0, len(payload)) + payload + b"\xce"


def _expect(file: Any, of: int, number: int) -> None:
    """Read a frame. Raises ValueError if it is not the method that was expected."""
    head = file.read(7)
    if len(head) < 7:
        raise ConnectionError("it hung up")
    payload = file.read(struct.unpack(">BHI", head)[2] + 1)
    if payload[:4] != struct.pack(">HH", of, number):
        raise ValueError(f"it answered with the method {struct.unpack('>HH', payload[:4])}")
