"""A real Apache Kafka: one process that is broker and controller (KRaft)."""

import secrets
import shutil
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Protocol

from things_kit.testing.servers.containers import InContainer, RunningServer, container_or_process
from things_kit.testing.servers.process import ServerProcess, ServerUnavailable, cached, run

VERSION: Final = "4.2.0"
LOG4J: Final = "2.25.1"

IMAGE: Final = "confluentinc/cp-kafka:8.2.0"
"""Kafka 4.2, in the packaging that testcontainers knows how to start."""

JAVA: Final = ("java", "-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-Dlog4j2.level=WARN")

SHORT_LIVED: Final = "-XX:TieredStopAtLevel=1"
"""Has Java compile once and simply: a third less processor time for a server that lives for seconds."""

PROPERTIES: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "inter.broker.listener.name": "PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL",
    # A killed broker is let in again when its session is over: 9 seconds by default
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "auto.create.topics.enable": "false",
    # Three seconds by default, which every first member of a group would wait
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.share.record.lock.duration.ms": "15000",
    # There is one broker, so there is one copy
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
}

POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>things-kit</groupId><artifactId>kafka-server</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
    </dependency>
    <!-- Kafka's POM leaves out where its log goes -->
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-core</artifactId><version>{LOG4J}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>{LOG4J}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-1.2-api</artifactId><version>{LOG4J}</version>
    </dependency>
  </dependencies>
</project>
"""


class KafkaServer(ServerProcess):
    """Kafka on 127.0.0.1, without TLS or logins. Needs Java 17, and Maven once, to fetch 44 MB.

    Topics are created by `declare` only: `auto.create.topics.enable` is off unless `properties` say otherwise.
    `features` are levels of features of the cluster, such as `{"share.version": 0}`, where they are not the usual ones.
    """

    name: ClassVar[str] = "kafka"
    port_count: ClassVar[int] = 3
    lasting: ClassVar[bool] = False
    """Whether Java should take the time to make it fast."""

    def __init__(
        self,
        folder: Path | None = None,
        ports: Sequence[int] | None = None,
        properties: Mapping[str, str] | None = None,
        features: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(folder, ports)
        self._properties = dict(properties or {})
        self._features = dict(features or {})

    @property
    def brokers(self) -> str:
        """HOST:PORT, as Kafka's own clients take it (`bootstrap.servers`)."""
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def url(self) -> str:
        """What `connect` takes."""
        return f"kafka://{self.brokers}"

    @property
    def secure_port(self) -> int:
        """A port for one more listener, which `properties` may declare."""
        return self.ports[2]

    def prepare(self) -> None:
        """Give it a formatted folder, and its properties."""
        formatted = (self.folder / "data").exists()
        if not formatted and not self._features:
            # Formatting takes longer than copying, and with static voters a formatted folder holds no port
            shutil.copytree(_installation() / "data", self.folder / "data")
        properties = _write_properties(self.folder, self.ports, self._properties)
        if not formatted and self._features:
            _format(_installation(), properties, self._features)

    def command(self) -> Sequence[str | Path]:
        """The broker, in the foreground."""
        java = JAVA if self.lasting else (*JAVA, SHORT_LIVED)
        return [*java, "-cp", _installation() / "lib" / "*", "kafka.Kafka", self.folder / "server.properties"]

    def check(self) -> None:
        """FindCoordinator without an error: only then topics can be made and groups can form."""
        request = struct.pack(">hhih2sh2s", 10, 0, 1, 2, b"tk", 2, b"tk")
        with socket.create_connection(("127.0.0.1", self.ports[0]), timeout=5) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as file:
                answer = file.read(10)
        if len(answer) < 10:
            raise ConnectionError("it hung up")
        code = struct.unpack(">iih", answer)[2]
        if code:
            raise ValueError(f"FindCoordinator answered with the error {code}")


class RunningKafka(RunningServer, Protocol):
    """A Kafka that somebody started for a test."""

    @property
    def brokers(self) -> str:
        """HOST:PORT, as Kafka's own clients take it."""


class KafkaInContainer(InContainer):
    """Kafka as Docker runs it, through testcontainers."""

    @property
    def brokers(self) -> str:
        """HOST:PORT, as Kafka's own clients take it."""
        return self.url.removeprefix("kafka://")


def start_kafka_container() -> RunningKafka:
    """A Kafka of the caller's own: in a container where Docker and testcontainers are, else as a local process.

    Raises:
        ServerUnavailable: There is neither Docker nor what the process needs.
    """
    return container_or_process(
        "kafka",
        lambda module: module.KafkaContainer(IMAGE).with_kraft(),
        lambda container: f"kafka://{container.get_bootstrap_server()}",
        KafkaServer,
        KafkaInContainer,
    )


def _installation() -> Path:
    """The jars, and a formatted data folder to copy."""
    return cached(f"kafka-{VERSION}", _install)


def _install(folder: Path) -> None:
    if shutil.which("java") is None:
        raise ServerUnavailable("Kafka needs Java 17 or newer, and there is no java")
    (folder / "pom.xml").write_text(POM)
    run(
        "mvn", "-q", "-B", "-f", folder / "pom.xml", "dependency:copy-dependencies",
        "-DincludeScope=runtime", f"-DoutputDirectory={folder / 'lib'}",
    )  # fmt: skip
    properties = _write_properties(folder, [1, 2, 3], {})
    _format(folder, properties, {})


def _format(installation: Path, properties: Path, features: Mapping[str, int]) -> None:
    cluster = secrets.token_urlsafe(16)
    levels = [f"--feature={name}={level}" for name, level in features.items()]
    tool = (*JAVA, SHORT_LIVED, "-cp", installation / "lib" / "*", "kafka.tools.StorageTool")
    run(*tool, "format", f"--cluster-id={cluster}", "-c", properties, *levels)


def _write_properties(folder: Path, ports: Sequence[int], more: Mapping[str, str]) -> Path:
    port, controller, *_ = ports
    properties = {
        **PROPERTIES,
        "log.dirs": str(folder / "data"),
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        **more,
    }
    path = folder / "server.properties"
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    return path
