"""Pub/Sub for tests: a stand-in for Google's service, as a process that survives being killed."""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Final, Protocol

from things_kit.testing.servers.containers import InContainer, RunningServer, container_or_process
from things_kit.testing.servers.process import ServerProcess, ServerUnavailable

PROJECT: Final = "things-kit"


def pubsub_url(endpoint: str) -> str:
    """What `connect` takes."""
    return f"pubsub://{PROJECT}?endpoint={endpoint}"


class PubSubServer(ServerProcess):
    """The stand-in of `pubsub_service` on 127.0.0.1. Google's own emulator is no package that could be installed.

    `certificate` (a certificate's file, and its key's) has it serve TLS; `login` is the id of the key with which
    callers must have signed their tokens.
    """

    name: ClassVar[str] = "pubsub"

    def __init__(
        self,
        folder: Path | None = None,
        ports: Sequence[int] | None = None,
        certificate: tuple[Path, Path] | None = None,
        login: str | None = None,
    ) -> None:
        super().__init__(folder, ports)
        self._certificate = certificate
        self._login = login

    @property
    def endpoint(self) -> str:
        """HOST:PORT, as Google's clients take it ($PUBSUB_EMULATOR_HOST)."""
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def url(self) -> str:
        """What `connect` takes."""
        return pubsub_url(self.endpoint)

    def prepare(self) -> None:
        """There is nothing to fill the folder with, but the client's package is needed for its types."""
        if find_spec("google.pubsub_v1") is None:
            raise ServerUnavailable('Pub/Sub for tests needs its client: pip install "things-kit[pubsub]"')

    def command(self) -> Sequence[str | Path]:
        """The service, in the foreground."""
        command: list[str | Path] = [sys.executable, "-m", "things_kit.testing.servers.pubsub_service"]
        command += [str(self.ports[0]), "--journal", self.folder / "journal"]
        if self._certificate is not None:
            command += ["--cert", self._certificate[0], "--key", self._certificate[1]]
        return [*command, "--login", self._login] if self._login else command

    def check(self) -> None:
        """HTTP/2 settings are the first that a gRPC server says, but over TLS."""
        with socket.create_connection(("127.0.0.1", self.ports[0]), timeout=5) as connection:
            if self._certificate is None:
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                if not connection.recv(9):
                    raise ConnectionError("it hung up")

    def cut(self) -> None:
        """Break all connections there are."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGUSR1)


class PubSubEmulator(ServerProcess):
    """Google's own emulator on 127.0.0.1, where it is installed (Debian: google-cloud-cli-pubsub-emulator). It keeps nothing."""

    name: ClassVar[str] = "pubsub-emulator"

    @property
    def endpoint(self) -> str:
        """HOST:PORT, as Google's clients take it ($PUBSUB_EMULATOR_HOST)."""
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def url(self) -> str:
        """What `connect` takes."""
        return pubsub_url(self.endpoint)

    def prepare(self) -> None:
        """Look for it."""
        _emulator()

    def command(self) -> Sequence[str | Path]:
        """The emulator without its launcher, which would stay beside it."""
        return ["java", "-Xmx512m", "-jar", _emulator(), "--host=127.0.0.1", f"--port={self.ports[0]}"]

    def check(self) -> None:
        """It speaks HTTP/1 as well."""
        with socket.create_connection(("127.0.0.1", self.ports[0]), timeout=5) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if not connection.recv(9).startswith(b"HTTP/1.1"):
                raise ConnectionError("it hung up")


def _emulator() -> Path:
    """The archive that is the emulator."""
    gcloud = shutil.which("gcloud")
    if gcloud is not None and shutil.which("java") is not None:
        for root in (Path(gcloud).resolve().parents[1], Path("/usr/lib/google-cloud-sdk")):
            for found in root.glob("platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"):
                return found
    raise ServerUnavailable(
        "Google's Pub/Sub emulator is not installed: google-cloud-cli-pubsub-emulator, and Java"
    )


class RunningPubSub(RunningServer, Protocol):
    """A Pub/Sub that somebody started for a test."""

    @property
    def endpoint(self) -> str:
        """HOST:PORT, as Google's clients take it ($PUBSUB_EMULATOR_HOST)."""


class PubSubInContainer(InContainer):
    """Google's emulator as Docker runs it, through testcontainers."""

    @property
    def endpoint(self) -> str:
        """HOST:PORT, as Google's clients take it ($PUBSUB_EMULATOR_HOST)."""
        return str(self._container.get_pubsub_emulator_host())


def start_pubsub_container() -> RunningPubSub:
    """A Pub/Sub of the caller's own: Google's emulator where Docker and testcontainers are, else a stand-in as a process.

    Raises:
        ServerUnavailable: There is neither Docker nor what the process needs.
    """
    return container_or_process(
        "google",
        lambda module: module.PubSubContainer(project=PROJECT),
        lambda container: pubsub_url(container.get_pubsub_emulator_host()),
        PubSubServer,
        PubSubInContainer,
    )
