"""A server of a test's own: as a container where Docker is, else as a process of this machine."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, Protocol, TypeVar

from things_kit.testing.servers.process import ServerProcess

ROOMS: Final = ("testcontainers.community", "testcontainers")
"""Where testcontainers has its modules: since 4.15, and before."""


class RunningServer(Protocol):
    """A broker that somebody started for a test."""

    @property
    def url(self) -> str:
        """What `connect` takes."""

    def terminate(self) -> None:
        """End it, with all that was in it."""


class InContainer:
    """A broker as Docker runs it, through testcontainers."""

    def __init__(self, container: Any, url: str) -> None:
        self._container = container
        self.url = url

    def terminate(self) -> None:
        """End and remove the container."""
        self._container.stop()


ServerT = TypeVar("ServerT", bound=ServerProcess)
ContainerT = TypeVar("ContainerT", bound=InContainer)


def container_or_process(
    module: str,
    make: Callable[[Any], Any],
    url: Callable[[Any], str],
    process: Callable[[], ServerT],
    kind: Callable[[Any, str], ContainerT],
) -> ServerT | ContainerT:
    """Start a container where Docker and testcontainers are, else a process.

    Args:
        module: The name of the module of testcontainers.
        make: Makes the container, given that module.
        url: The URL of the container once it runs.
        process: What is started where there is no container.
        kind: What the running container becomes.

    Raises:
        ServerUnavailable: There is neither Docker nor what the process needs.
    """
    found = _testcontainers(module) if docker_answers() else None
    if found is None:
        return process().__enter__()
    container = make(found).start()
    return kind(container, url(container))


def address(container: Any, port: int) -> str:
    """HOST:PORT under which a port of a container is reached."""
    return f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}"


def docker_answers() -> bool:
    """Whether there is a Docker that runs containers for us."""
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(["docker", "version"], capture_output=True, timeout=10, check=False)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def _testcontainers(module: str) -> Any:
    """A module of testcontainers, which is an optional package; None where it is missing."""
    for room in ROOMS:
        with contextlib.suppress(ModuleNotFoundError):
            return import_module(f"{room}.{module}")
    return None
