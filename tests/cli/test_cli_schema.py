"""`things-kit schema`."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import CliRunner

from tests.codecs.given import Server
from things_kit import Topic
from things_kit.cli.app import app as program
from things_kit.codecs import Avro, CloudEvents, MessagePack, Protobuf


class Order(msgspec.Struct):
    id: str


class Address(msgspec.Struct):
    street: str


class Parcel(msgspec.Struct):
    to: Address


orders = Topic("orders", Order, codec=Avro(namespace="shop"))
plain = Topic("plain", Order)
events = Topic("events", Order, codec=CloudEvents(source="/s"))
times = Topic("times", Timestamp, codec=Protobuf())
packed = Topic("packed", Order, codec=MessagePack())
raw = Topic("raw", bytes)
parcels = Topic("parcels", Parcel, codec=Avro(references={"address-value": Address}))


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def run(*words: str) -> Any:
    return CliRunner().invoke(program, ["schema", *words])


def named(*names: str) -> list[str]:
    return [f"{__name__}:{name}" for name in names]


def test_show_prints_what_topics_would_register() -> None:
    done = run("show", *named("orders", "plain", "events", "times"))
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["subject"] for row in rows] == ["orders-value", "plain-value", "events-value", "times-value"]
    assert rows[0]["schema"]["namespace"] == "shop"
    assert rows[1]["schema"]["properties"] == {"id": {"type": "string"}}
    assert rows[3]["schema"]["name"] == "google/protobuf/timestamp.proto"


def test_register_and_show_what_is_registered(server: Server) -> None:
    done = run("register", *named("orders", "times"), "--registry", server.url, "--json")
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [1, 2]
    assert set(server.memory.subjects) == {"orders-value", "times-value"}
    server.answers = [(200, b'{"version": 3, "id": 1}')]
    shown = json.loads(run("show", *named("orders"), "--registry", server.url).stdout)
    assert shown["registered"] == {"version": 3, "id": 1}


@pytest.mark.parametrize(
    ("answer", "verdict", "code"),
    [
        ((200, b'{"is_compatible": true}'), "compatible", 0),
        ((200, b'{"is_compatible": false, "messages": ["no default"]}'), "incompatible", 1),
        ((404, b'{"error_code": 40401}'), "new", 0),
    ],
)
def test_check_says_whether_it_may_follow(server: Server, answer: Any, verdict: str, code: int) -> None:
    server.answers = [answer]
    done = run("check", *named("orders"), "--registry", server.url, "--json")
    assert done.exit_code == code
    assert json.loads(done.stdout)["verdict"] == verdict


def test_what_a_schema_refers_to_is_shown_checked_and_registered_before_it(server: Server) -> None:
    shown = run("show", *named("parcels"))
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["subject"] for row in rows] == ["address-value", "parcels-value"]
    assert rows[1]["schema"]["fields"] == [{"name": "to", "type": "Address"}]
    done = run("register", *named("parcels"), "--registry", server.url, "--json")
    assert [json.loads(line)["subject"] for line in done.stdout.splitlines()] == [
        "address-value", "parcels-value",
    ]  # fmt: skip
    assert server.memory.schemas[1]["references"] == [
        {"name": "Address", "subject": "address-value", "version": 1}
    ]


def verdicts(*words: str) -> dict[str, str]:
    rows = [json.loads(line) for line in run("check", *words, "--json").stdout.splitlines()]
    return {row["subject"]: row["verdict"] for row in rows}


def test_check_registers_nothing_also_of_what_a_schema_refers_to(server: Server) -> None:
    words = [*named("parcels"), "--registry", server.url]
    assert verdicts(*words) == {"address-value": "new", "parcels-value": "new"}
    assert server.memory.subjects == {}
    run("register", *named("orders"), "--registry", server.url)
    server.memory.subjects["parcels-value"] = [1]
    assert verdicts(*words) == {"address-value": "new", "parcels-value": "incompatible"}
    server.memory.subjects["address-value"] = [1]
    server.compatible = True
    assert verdicts(*words) == {"address-value": "compatible", "parcels-value": "compatible"}
    assert len(server.memory.schemas) == 1


def test_what_has_no_schema_is_wrong_use(server: Server) -> None:
    for name in ("packed", "raw"):
        assert run("show", *named(name)).exit_code == 2
    assert run("show", f"{__name__}:Order").exit_code == 2
    assert run("check", *named("orders"), "--registry", "http://127.0.0.1:9").exit_code == 1
