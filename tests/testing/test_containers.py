"""Brokers of a test's own: testcontainers starts them where Docker is, a local process only where there is neither."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest

from things_kit.testing import (
    RunningServer,
    start_kafka_container,
    start_nats_container,
    start_postgres_container,
    start_pubsub_container,
    start_rabbitmq_container,
    start_redis_container,
)
from things_kit.testing.servers import kafka, nats, postgres, pubsub, rabbitmq, redis
from things_kit.testing.servers.containers import ROOMS


class Container:
    """What is used of testcontainers' containers, in the order in which it may be used."""

    def __init__(self, image: str = "google", **options: Any) -> None:
        self.calls = [f"image {image}", *(f"{name} {value}" for name, value in options.items())]

    def with_kraft(self) -> Self:
        self.calls.append("kraft")
        return self

    def start(self) -> Self:
        self.calls.append("started")
        return self

    def get_bootstrap_server(self) -> str:
        return f"{self.get_container_host_ip()}:{self.get_exposed_port(9092)}"

    get_pubsub_emulator_host = get_bootstrap_server

    def get_container_host_ip(self) -> str:
        assert self.calls[-1] == "started", "it has an address only once it runs"
        return "localhost"

    def get_exposed_port(self, port: int) -> int:
        assert self.calls[-1] == "started", "it has an address only once it runs"
        return 40_000 + port

    def stop(self) -> None:
        self.calls.append("stopped")


Start = Callable[[], RunningServer]

STARTS: Mapping[str, tuple[Start, str, str, list[str]]] = {
    "kafka": (start_kafka_container, "KafkaContainer", "kafka://localhost:49092", [kafka.IMAGE, "kraft"]),
    "nats": (start_nats_container, "NatsContainer", "nats://localhost:44222", [nats.IMAGE, "jetstream True"]),
    "google": (
        start_pubsub_container,
        "PubSubContainer",
        "pubsub://things-kit?endpoint=localhost:49092",
        ["google", "project things-kit"],
    ),
    "postgres": (
        start_postgres_container,
        "PostgresContainer",
        "postgresql://postgres:postgres@localhost:45432/postgres",
        [postgres.IMAGE, "username postgres", "password postgres", "dbname postgres"],
    ),
    "rabbitmq": (
        start_rabbitmq_container,
        "RabbitMqContainer",
        "amqp://guest:guest@localhost:45672/",
        [rabbitmq.IMAGE],
    ),
    "redis": (start_redis_container, "RedisContainer", "redis://localhost:46379/0", [redis.IMAGE]),
}

Docker = Callable[[int], None]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    """A Docker whose engine answers with that exit code."""

    def install(exit_code: int) -> None:
        program = tmp_path / "docker"
        program.write_text(f"#!/bin/sh\nexit {exit_code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for server in (
        kafka.KafkaServer, nats.NATSServer, postgres.PostgresServer, pubsub.PubSubServer, rabbitmq.RabbitMQServer, redis.RedisServer,
    ):  # fmt: skip
        monkeypatch.setattr(server, "__enter__", lambda _: "a local process")


def install(monkeypatch: pytest.MonkeyPatch, broker: str, room: str | None) -> list[Container]:
    """A testcontainers that has this broker in that room; returns the containers it makes."""
    made: list[Container] = []

    def make(*arguments: Any, **options: Any) -> Container:
        made.append(Container(*arguments, **options))
        return made[-1]

    for each in (*ROOMS, *(f"{each}.{broker}" for each in ROOMS)):
        monkeypatch.setitem(sys.modules, each, None)  # as if it were not installed
    if room is not None:
        module = ModuleType(f"{room}.{broker}")
        module.__dict__[STARTS[broker][1]] = make
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("broker", STARTS)
def test_with_docker_it_is_a_container(
    docker: Docker, monkeypatch: pytest.MonkeyPatch, broker: str, room: str
) -> None:
    docker(0)
    start, _, url, (image, *options) = STARTS[broker]
    made = install(monkeypatch, broker, room)
    running = start()
    assert running.url == url
    running.terminate()
    assert [container.calls for container in made] == [[f"image {image}", *options, "started", "stopped"]]


@pytest.mark.parametrize(("exit_code", "room"), [(1, ROOMS[0]), (0, None)])
@pytest.mark.parametrize("broker", STARTS)
def test_without_an_engine_or_testcontainers_it_is_a_process(
    docker: Docker, monkeypatch: pytest.MonkeyPatch, broker: str, exit_code: int, room: str | None
) -> None:
    docker(exit_code)
    made = install(monkeypatch, broker, room)
    running: object = STARTS[broker][0]()
    assert running == "a local process"
    assert made == []
