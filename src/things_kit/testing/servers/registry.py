"""A real schema registry: Apicurio, which speaks the API of Confluent's."""

import json
import shutil
import tarfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from things_kit.testing.servers.containers import InContainer, RunningServer, address, container_or_process
from things_kit.testing.servers.process import ServerProcess, ServerUnavailable, cached

VERSION: Final = "3.0.9"
IMAGE: Final = f"apicurio/apicurio-registry:{VERSION}"
JAR: Final = f"apicurio-registry-app-{VERSION}-runner.jar"
ARCHIVE: Final = (
    f"https://repo.maven.apache.org/maven2/io/apicurio/apicurio-registry-app/{VERSION}/"
    f"apicurio-registry-app-{VERSION}-all.tar.gz"
)
API: Final = "/apis/ccompat/v7"


class RegistryServer(ServerProcess):
    """Apicurio on 127.0.0.1; its database is in its folder and outlives it. Needs Java 17; 109 MB are fetched once."""

    name: ClassVar[str] = "registry"

    @property
    def url(self) -> str:
        """What `Registry` takes, and clients of Confluent's."""
        return f"http://127.0.0.1:{self.ports[0]}{API}"

    def prepare(self) -> None:
        """Nothing: it makes its database itself."""

    def command(self) -> Sequence[str | Path]:
        """The server, in the foreground."""
        database = (
            f"jdbc:h2:file:{self.folder}/database;WRITE_DELAY=0"  # else what it confirmed last may be lost
        )
        return [
            "java", "-Xmx400m", "-XX:TieredStopAtLevel=1", "-Dquarkus.http.host=127.0.0.1",
            f"-Dquarkus.http.port={self.ports[0]}", f"-Dapicurio.datasource.url={database}",
            "-jar", cached(f"apicurio-{VERSION}", _install) / JAR,
        ]  # fmt: skip

    def check(self) -> None:
        """It lists its subjects."""
        with urllib.request.urlopen(f"{self.url}/subjects", timeout=5) as answer:  # noqa: S310 - of our own
            if answer.status != 200:
                raise ConnectionError(f"it answered {answer.status}")
            json.load(answer)


def start_registry_container() -> RunningServer:
    """A schema registry of the caller's own: in a container where Docker and testcontainers are, else as a process.

    Raises:
        ServerUnavailable: There is neither Docker nor Java.
    """
    return container_or_process(
        "core.container",
        lambda module: module.DockerContainer(IMAGE).with_exposed_ports(8080),
        lambda container: f"http://{address(container, 8080)}{API}",
        RegistryServer,
        InContainer,
    )


def _install(folder: Path) -> None:
    if shutil.which("java") is None:
        raise ServerUnavailable("the registry needs Java 17 or newer, and there is no java")
    archive = folder / "registry.tar.gz"
    try:
        urllib.request.urlretrieve(ARCHIVE, archive)
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise ServerUnavailable(f"the registry cannot be fetched from {ARCHIVE}: {error}") from error
    archive.unlink()
