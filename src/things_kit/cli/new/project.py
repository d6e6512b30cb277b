"""What a new project consists of: templates, filled in and written to a folder."""

import keyword
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Final, NamedTuple

from things_kit.cli.running import WRONG_USE, CommandFailed

SUFFIX: Final = ".tmpl"
"""Templates end so, or tools would take them for code of this package."""


class Place(NamedTuple):
    """How a broker is said in config.yaml and by URL, the extra that its client comes with, and its service for compose.yaml."""

    address: str
    url: str
    extra: str | None = None
    service: str = ""


KAFKA: Final = """\
    environment: { KAFKA_BROKERS: "broker:9092" }
    depends_on: [broker]
  broker:
    image: apache/kafka:4.0.0
    environment:
      KAFKA_NODE_ID: 1
      KAFKA_PROCESS_ROLES: broker,controller
      KAFKA_LISTENERS: PLAINTEXT://:9092,CONTROLLER://:9093
      KAFKA_ADVERTISED_LISTENERS: PLAINTEXT://broker:9092
      KAFKA_CONTROLLER_LISTENER_NAMES: CONTROLLER
      KAFKA_CONTROLLER_QUORUM_VOTERS: 1@localhost:9093
      KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR: 1
"""
NATS: Final = """\
    environment: { NATS_SERVERS: "broker:4222" }
    depends_on: [broker]
  broker:
    image: nats:2
    command: [--jetstream, --store_dir, /data]
    volumes: [data:/data]
volumes:
  data:
"""
RABBITMQ: Final = """\
    environment: { RABBITMQ_HOSTS: "broker:5672" }
    depends_on: [broker]
  broker:
    image: rabbitmq:4
    hostname: broker
    volumes: [data:/var/lib/rabbitmq]
volumes:
  data:
"""
REDIS: Final = """\
    environment: { REDIS_HOSTS: "broker:6379" }
    depends_on: [broker]
  broker:
    image: redis:8
    command: [redis-server, --appendonly, "yes"]
    volumes: [data:/data]
volumes:
  data:
"""
SQLITE: Final = """\
    environment: { SQLITE_PATH: /data/events.db }
    user: root # whose the volume is
    volumes: [data:/data]
volumes:
  data:
"""
PUBSUB: Final = """\
    environment: { PUBSUB_ENDPOINT: "broker:8085" }
    depends_on: [broker]
  broker:
    image: gcr.io/google.com/cloudsdktool/google-cloud-cli:emulators
    command: gcloud beta emulators pubsub start --host-port=0.0.0.0:8085
"""
SQS: Final = """\
    environment: { SQS_ENDPOINT: "http://broker:4566" }
    depends_on: [broker]
  broker:
    image: localstack/localstack:4
    environment: { SERVICES: "sqs,sns" }
"""

BROKERS: Final = {
    "kafka": Place("brokers: [localhost:9092]", "kafka://localhost:9092", "kafka", KAFKA),
    "nats": Place("servers: [localhost:4222]", "nats://localhost:4222", "nats", NATS),
    "pubsub": Place("project: my-project", "pubsub://my-project", "pubsub", PUBSUB),
    "rabbitmq": Place("hosts: [localhost:5672]", "amqp://localhost:5672", "rabbitmq", RABBITMQ),
    "redis": Place("hosts: [localhost:6379]", "redis://localhost:6379", "redis", REDIS),
    "servicebus": Place(
        "namespace: my-namespace.servicebus.windows.net",
        "servicebus://my-namespace.servicebus.windows.net",
        "servicebus",
    ),
    "sqlite": Place("path: events.db", "sqlite:///events.db", None, SQLITE),
    "sqs": Place("region: us-east-1", "sqs://us-east-1", "sqs", SQS),
}


def package_of(folder: Path) -> str:
    """The package of the project in this folder."""
    return folder.name.replace("-", "_")


def write(folder: Path, broker: str) -> list[Path]:
    """Write a project into a folder, which is made; its name is the folder's. Returns the files.

    Raises:
        CommandFailed: The name is none for a package, the broker is unknown, or the folder holds something.
    """
    name, place = folder.name, BROKERS.get(broker)
    package = package_of(folder)
    if (
        not re.fullmatch(r"[a-z]([a-z0-9_-]*[a-z0-9])?", name)
        or keyword.iskeyword(package)
        or package == "tests"
    ):
        raise CommandFailed(
            f"{name!r} is no name for a project: expected lower-case letters, digits and dashes, such as shop",
            WRONG_USE,
        )
    if place is None:
        raise CommandFailed(f"unknown broker {broker!r}; known are {', '.join(BROKERS)}", WRONG_USE)
    extras = ",".join(sorted({"app", "ops", *([place.extra] if place.extra else [])}))
    words = {
        "name": name,
        "package": package,
        "broker": broker,
        "modules": ", ".join(sorted(["config", "logging", "ops", broker])),
        "address": place.address,
        "url": place.url,
        "extras": extras,
        "service": place.service,
    }
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CommandFailed(f"{folder} exists and is not an empty folder: expected a new one")
        return _written(files(__package__) / "template", folder, words)
    except OSError as error:
        raise CommandFailed(f"{folder} cannot be written: {error.strerror}") from error


def _written(template: Traversable, folder: Path, words: dict[str, str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for source in sorted(template.iterdir(), key=lambda source: source.name):
        target = folder / source.name.replace("PACKAGE", words["package"]).removesuffix(SUFFIX)
        if source.is_dir():
            written += _written(source, target, words)
        else:
            target.write_text(
                Template(source.read_text(encoding="utf-8")).substitute(words), encoding="utf-8"
            )
            written.append(target)
    return written
