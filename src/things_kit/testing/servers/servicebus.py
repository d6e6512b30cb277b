"""Service Bus for tests: a stand-in for Azure's service, as a process that survives being killed."""

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Protocol
from urllib.parse import quote

from things_kit.testing.servers.containers import RunningServer
from things_kit.testing.servers.process import ServerProcess, cached, run

KEY_NAME: Final = "Root"
KEY: Final = "c2VjcmV0LW9mLXRoaW5ncy1raXQ="

SASL: Final = b"AMQP\x03\x01\x00\x00"

PROTON: Final = "0.40.0"
"""The version of Qpid Proton, which speaks AMQP for the stand-in. It is built from source, so nobody else has to have it."""


class ServiceBusServer(ServerProcess):
    """The stand-in of `servicebus_emulator` on 127.0.0.1, without TLS.

    Microsoft's own emulator is a container, which needs a second one for its database.
    """

    name: ClassVar[str] = "servicebus"
    port_count: ClassVar[int] = 2

    @property
    def url(self) -> str:
        """What `connect` takes."""
        port, admin = self.ports
        login = f"key_name={KEY_NAME}&key={quote(KEY, safe='')}"
        return f"servicebus://127.0.0.1:{port}?{login}&emulator=true&admin_port={admin}"

    @property
    def connection_string(self) -> str:
        """What Azure's own clients take."""
        login = f"SharedAccessKeyName={KEY_NAME};SharedAccessKey={KEY}"
        return f"Endpoint=sb://127.0.0.1:{self.ports[0]};{login};UseDevelopmentEmulator=true"

    def prepare(self) -> None:
        """Have Qpid Proton built, once for all; that takes a compiler, and a minute."""
        _proton()

    def environment(self) -> Mapping[str, str]:
        """The stand-in finds Proton where it was built."""
        path = [str(_proton()), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(path)}

    def command(self) -> Sequence[str | Path]:
        """The stand-in, in the foreground."""
        module = "things_kit.testing.servers.servicebus_emulator"
        ports = [str(port) for port in self.ports]
        return [
            sys.executable,
            "-m",
            module,
            *ports,
            "--journal",
            self.folder / "journal",
            "--login",
            f"{KEY_NAME}:{KEY}",
        ]

    def check(self) -> None:
        """It speaks AMQP, and HTTP."""
        with socket.create_connection(("127.0.0.1", self.ports[0]), timeout=5) as connection:
            connection.sendall(SASL)
            if not connection.recv(len(SASL)):
                raise ConnectionError("it hung up")
        socket.create_connection(("127.0.0.1", self.ports[1]), timeout=5).close()

    def cut(self) -> None:
        """Break all connections there are."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGUSR1)


class RunningServiceBus(RunningServer, Protocol):
    """A Service Bus that somebody started for a test."""

    @property
    def connection_string(self) -> str:
        """What Azure's own clients take."""


def start_servicebus_container() -> RunningServiceBus:
    """A Service Bus of the caller's own: the stand-in, as a local process, also where there is Docker.

    Microsoft's emulator in a container takes its entities from a file, and asks for a licence to be accepted: that is for
    its user to do.

    Raises:
        ServerUnavailable: What the process needs is missing.
    """
    return ServiceBusServer().__enter__()


def _proton() -> Path:
    name = f"qpid-proton-{PROTON}-{sys.implementation.cache_tag}"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    return cached(name, lambda folder: run(*pip, "--target", folder, f"python-qpid-proton=={PROTON}"))
