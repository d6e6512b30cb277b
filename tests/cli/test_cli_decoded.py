"""`tail` and `dlq show` with `--registry`."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fastavro
import pytest

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


@pytest.fixture
def registry() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


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
