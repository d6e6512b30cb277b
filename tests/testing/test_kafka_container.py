"""Kafka where Docker is: testcontainers starts it, a local process only where there is neither."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Self

import pytest

from things_kit.testing.servers.kafka import IMAGE, TESTCONTAINERS, KafkaServer, start_kafka_container


class Container:
    """What is used of testcontainers' KafkaContainer, in the order in which it may be used."""

    def __init__(self, image: str) -> None:
        self.calls = [f"image {image}"]

    def with_kraft(self) -> Self:
        self.calls.append("kraft")
        return self

    def start(self) -> Self:
        assert self.calls[-1] == "kraft"
        self.calls.append("started")
        return self

    def get_bootstrap_server(self) -> str:
        assert self.calls[-1] == "started", "it has an address only once it runs"
        return "localhost:49153"

    def stop(self) -> None:
        self.calls.append("stopped")


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


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KafkaServer, "__enter__", lambda _: "a local process")


def install(monkeypatch: pytest.MonkeyPatch, name: str | None) -> list[Container]:
    """A testcontainers that has its Kafka in the module of that name; returns the containers it makes."""
    made: list[Container] = []

    def make(image: str) -> Container:
        made.append(Container(image))
        return made[-1]

    for each in ("testcontainers", "testcontainers.community", *TESTCONTAINERS):
        monkeypatch.setitem(sys.modules, each, None)  # as if it were not installed
    if name is not None:
        module = ModuleType(name)
        module.__dict__["KafkaContainer"] = make
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.mark.parametrize("name", TESTCONTAINERS)
def test_with_docker_it_is_a_container_in_kraft_mode(
    docker: Docker, no_process: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    docker(0)
    made = install(monkeypatch, name)
    kafka = start_kafka_container()
    assert (kafka.brokers, kafka.url) == ("localhost:49153", "kafka://localhost:49153")
    kafka.terminate()
    assert [container.calls for container in made] == [[f"image {IMAGE}", "kraft", "started", "stopped"]]


@pytest.mark.parametrize(("exit_code", "name"), [(1, TESTCONTAINERS[0]), (0, None)])
def test_without_an_engine_or_testcontainers_it_is_a_process(
    docker: Docker, no_process: None, monkeypatch: pytest.MonkeyPatch, exit_code: int, name: str | None
) -> None:
    docker(exit_code)
    made = install(monkeypatch, name)
    kafka: object = start_kafka_container()
    assert kafka == "a local process"
    assert made == []
