"""`things-kit config`: what is in force, and what could be."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

APP = """
from dataclasses import dataclass
from things_kit import App
from things_kit.modules import config, memory

@dataclass
class Shop:
    price: int = 3
    password: str = "s3cret"

app = App(config.module, memory.module, config.section("shop", Shop))

def make() -> App:
    return app
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "some_shop.py").write_text(APP)
    yield
    sys.modules.pop("some_shop", None)


def test_without_an_app_it_prints_the_sections_that_are_there(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("kafka: {brokers: [a, b], password: s3cret}\n")
    monkeypatch.setenv("LOGGING_LEVEL", "debug")
    done = cli("config", "--json")
    assert done.exit_code == 0, done.output
    shown = json.loads(done.output)
    assert set(shown) == {"kafka", "logging"}
    assert shown["kafka"]["brokers"] == ["a", "b"]
    assert shown["kafka"]["concurrency"] == 1
    assert shown["logging"]["level"] == "DEBUG"
    assert "s3cret" not in done.output


@pytest.mark.parametrize("target", ["some_shop:app", "some_shop:make"])
def test_with_an_app_it_prints_its_sections_for_people(cli: Cli, target: str) -> None:
    done = cli("config", target)
    assert done.exit_code == 0, done.output
    assert "shop:\n  price: 3\n  password: '**********'\n" in done.output


def test_the_schema_describes_every_section(cli: Cli) -> None:
    for arguments, sections in (
        (["config", "schema", "some_shop:app"], {"memory", "shop"}),
        (["config", "schema"], {"logging", "kafka", "memory", "nats", "ops", "postgres", "pubsub", "rabbitmq", "redis",
                                "servicebus", "sqlite", "sqs", "telemetry"}),
    ):  # fmt: skip
        done = cli(*arguments)
        assert done.exit_code == 0, done.output
        assert set(json.loads(done.output)["properties"]) == sections


def test_the_schema_leaves_out_what_is_not_installed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "things_kit.modules.telemetry", None)
    done = cli("config", "schema")
    assert done.exit_code == 0, done.output
    assert not {"telemetry"} & set(json.loads(done.output)["properties"])


def test_mistakes_are_said_and_fail(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("shop: {prize: 3}\nshopping: {}\n")
    done = cli("config", "some_shop:app")
    assert done.exit_code == 2
    first, second = done.output.splitlines()
    assert first.startswith("things-kit: config.yaml:2: shopping: nothing reads this section")
    assert second.startswith("things-kit: config.yaml:1: shop.prize: unknown field; did you mean 'price'?")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["some_shop"], "expected `config [schema] [MODULE:APP]`"),
        (["some_shop:app", "some_shop:app"], "expected `config [schema] [MODULE:APP]`"),
        (["nowhere:app"], "there is no module 'nowhere'"),
        (["some_shop:nothing"], "some_shop has no App named 'nothing'"),
    ],
)
def test_wrong_use_is_said(cli: Cli, arguments: list[str], sentence: str) -> None:
    done = cli("config", *arguments)
    assert done.exit_code == 2
    assert sentence in done.output
