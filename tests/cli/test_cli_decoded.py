"""`tail`, `dlq show` and `bridge` with `--registry`."""

import io
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fastavro
import pytest

from tests.cli.conftest import PATIENCE
from things_kit.codecs.framed import framed
from things_kit.messaging.message import Message

SCHEMA = '{"type": "record", "name": "Order", "fields": [{"name": "id", "type": "string"}]}'
AVRO, JSON, PROTOBUF, UNKNOWN = 1, 2, 3, 9
KNOWN = {
    AVRO: {"schema": SCHEMA},
    JSON: {"schema": "{}", "schemaType": "JSON"},
    PROTOBUF: {"schema": "syntax = 'proto3';", "schemaType": "PROTOBUF"},
}


class Answers(BaseHTTPRequestHandler):
    """Schemas by their ids, and nothing else; of an id that it does not know it says that it may not tell."""

    def do_GET(self) -> None:
        known = KNOWN.get(int(self.path.rpartition("/")[2]))
        body = json.dumps(known or {"message": "not yours"}).encode()
        self.send_response(200 if known else 409)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """It says nothing."""


class Unwell(BaseHTTPRequestHandler):
    """Says of every schema that it cannot tell now; whoever asked is written down."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """It says nothing."""


@contextmanager
def serving(answers: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def registry() -> Iterator[str]:
    with serving(Answers) as url:
        yield url


def _avro(order: str) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(json.loads(SCHEMA)), {"id": order})
    return framed(AVRO) + stream.getvalue()


MESSAGES = [
    Message("orders", _avro("o-1")),
    Message("orders", framed(JSON) + b'{"id": "o-2"}'),
    Message("orders", framed(PROTOBUF) + b"\x00\x0a"),
    Message("orders", framed(UNKNOWN) + b"x"),
    Message("orders", _avro("o-1")[:-1]),
    Message("orders", b"\xff\xfe"),
    Message("orders", b'{"plain": true}'),
]


def _tail(cli: Any, url: str, registry: str, *options: str) -> list[str]:
    result = cli(
        "tail",
        url,
        "orders",
        "--from",
        "earliest",
        "--limit",
        str(len(MESSAGES)),
        "--registry",
        registry,
        *options,
    )
    assert result.exit_code == 0
    lines: list[str] = result.stdout.splitlines()
    return lines


def test_tail_shows_values_as_the_registry_s_schemas_read_them(
    cli: Any, url: str, publish: Any, registry: str
) -> None:
    publish(*MESSAGES)
    rows = [json.loads(line) for line in _tail(cli, url, registry, "--json")]
    assert [row.get("decoded") for row in rows] == [
        {"id": "o-1"},
        {"id": "o-2"},
        None,
        None,
        None,
        None,
        None,
    ]
    assert rows[0]["value"] == MESSAGES[0].value.decode()


def test_tail_says_of_each_value_why_it_could_not_be_decoded(
    cli: Any, url: str, publish: Any, registry: str
) -> None:
    publish(*MESSAGES)
    rows = [json.loads(line) for line in _tail(cli, url, registry, "--json")]
    told = [row.get("not_decoded") for row in rows]
    assert told[0] is told[1] is told[6] is None
    assert "PROTOBUF" in told[2]
    assert "schema 9" in told[3]
    assert "schema 1" in told[4]
    assert "2 bytes, too few" in told[5]
    lines = _tail(cli, url, registry)
    assert ["(not decoded: " in line for line in lines] == [text is not None for text in told]
    assert '{"id":"o-1"}' in lines[0]


def test_a_registry_that_is_away_leaves_values_as_they_are(cli: Any, url: str, publish: Any) -> None:
    publish(*MESSAGES)
    lines = _tail(cli, url, "http://127.0.0.1:9")
    assert "cannot be reached" in lines[0]


def test_a_registry_that_is_away_is_not_asked_for_each_message(cli: Any, url: str, publish: Any) -> None:
    publish(*MESSAGES)
    asked: list[str] = []
    with serving(type("Down", (Unwell,), {"asked": asked})) as registry:
        rows = [json.loads(line) for line in _tail(cli, url, registry, "--json")]
    assert asked == ["/schemas/ids/1"]
    assert ["answered 503" in row.get("not_decoded", "") for row in rows] == [True] * 5 + [False] * 2


def _by_value(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Two batches are on their way at once, and messages without a key have no order."""
    return {json.dumps(row["value"]): row.get("decoded") or row.get("not_decoded") for row in rows}


def test_a_bridge_shows_what_it_has_moved_and_carries_the_bytes_as_they_are(
    cli: Any, url: str, publish: Any, registry: str, tmp_path: Path
) -> None:
    publish(*MESSAGES)
    target = f"sqlite:///{tmp_path}/target.db"
    result = cli("bridge", url, target, "orders", "--until-empty", "--registry", registry, "--json")
    *rows, figures = map(json.loads, result.stdout.splitlines())
    assert (result.exit_code, figures["moved"]) == (0, len(MESSAGES))
    shown = _by_value(rows)
    assert shown == _by_value(map(json.loads, _tail(cli, url, registry, "--json")))
    assert shown == _by_value(map(json.loads, _tail(cli, target, registry, "--json")))


def test_a_bridge_says_beside_a_message_why_the_target_refuses_it(
    cli: Any, url: str, publish: Any, registry: str, tmp_path: Path
) -> None:
    large = framed(JSON) + json.dumps({"id": "o-9", "note": "x" * 200}).encode()
    publish(Message("orders", _avro("o-1")), Message("orders", large), Message("bills", b"a bill"))
    target = f"sqlite:///{tmp_path}/target.db?max_message_bytes=100"
    options = ("--until-empty", "--dead-letter", "{topic}-refused", "--registry", registry)
    result = cli("bridge", url, target, "orders", "bills", *options)
    moved, bill, refused = sorted(
        result.stdout.splitlines()[:3], key=lambda line: ("refused" in line, "bill" in line)
    )
    assert moved.startswith("orders  ")
    assert moved.endswith('{"id":"o-1"}')
    assert bill.startswith("bills  ")
    assert bill.endswith("a bill")
    assert '"id":"o-9"' in refused
    assert "(refused: a message for 'orders' has " in refused


def test_a_bridge_shows_values_as_they_are_without_a_registry(
    cli: Any, url: str, publish: Any, tmp_path: Path
) -> None:
    publish(MESSAGES[0], MESSAGES[6])
    result = cli("bridge", url, f"sqlite:///{tmp_path}/target.db", "orders", "--until-empty", "--show")
    *shown, figures = result.stdout.splitlines()
    assert sorted(line.rpartition("  ")[2] for line in shown) == [
        "\\x00\\x00\\x00\\x00\\x01\\x06o-1",
        '{"plain": true}',
    ]
    assert figures.startswith("moved 2 messages")


def test_a_bridge_whose_output_nobody_reads_any_more_stops_and_does_not_claim_success(
    program: Any, url: str, publish: Any, tmp_path: Path
) -> None:
    publish(Message("orders", b"x" * 200))  # which keeps it from its end
    target = f"sqlite:///{tmp_path}/target.db?max_message_bytes=100"
    running = program("bridge", url, target, "orders", "--until-empty", "--show")
    assert "(refused: " in running.line()
    running.process.stdout.close()
    assert running.process.wait(PATIENCE) == 1
    assert "nobody reads any more what is moved" in running.process.stderr.read().decode()


def test_a_dead_letter_is_shown_decoded(cli: Any, url: str, bury: Any, registry: str) -> None:
    known, unknown = (
        Message("orders", _avro("o-7"), id="m-7"),
        Message("orders", framed(UNKNOWN) + b"x", id="m-8"),
    )
    bury([(known, ValueError("bad")), (unknown, ValueError("bad"))])
    shown = cli("dlq", "show", url, "orders-dlq", "m-7", "--registry", registry)
    assert '"id": "o-7"' in shown.stdout
    row = json.loads(cli("dlq", "show", url, "orders-dlq", "m-7", "--registry", registry, "--json").stdout)
    assert row["decoded"] == {"id": "o-7"}
    shown = cli("dlq", "show", url, "orders-dlq", "m-8", "--registry", registry)
    assert "(not decoded: " in shown.stdout
