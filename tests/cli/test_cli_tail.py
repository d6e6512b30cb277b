"""`things-kit tail`, and its way back through `publish`."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from things_kit.messaging.message import Message

AWKWARD = [
    Message("orders", b"\xff\x00binary", key=b"\xfe", headers={"type": "a"}),
    Message(
        "orders",
        "größe \x1b[31m\x9b0m\u202e\x7f\u2028".encode(),
        key="κλειδί".encode(),
        headers={"naïve": "\x07\n"},
    ),
    Message("orders", b"", timestamp=datetime(2031, 1, 2, 3, 4, 5, 678000, UTC), id="given"),
    Message("orders", b'{"base64": "AAAA"}', key=b""),
    Message("orders", b"[red]not markup[/red] :smile:"),
]


@pytest.fixture
def tailing(program: Any, cli: Any, url: str) -> Callable[..., Any]:
    """A tail that listens already."""
    cli("declare", url, "orders")

    def start(*options: str, **more: Any) -> Any:
        running = program("tail", url, "orders", *options, **more)
        assert "listening to orders" in running.line("stderr")
        return running

    return start


def test_rows_have_every_field(tailing: Any, publish: Any) -> None:
    running = tailing("--json", "--limit", "1")
    publish(Message("orders", b'{"n": 1}', key=b"k", headers={"type": "a"}, id="m-1"))
    code, out, _ = running.end()
    (row,) = _rows(out)
    assert code == 0
    assert list(row) == [
        "topic",
        "value",
        "key",
        "headers",
        "partition",
        "offset",
        "timestamp",
        "id",
        "attempt",
    ]
    assert (row["topic"], row["value"], row["key"], row["headers"]) == (
        "orders",
        '{"n": 1}',
        "k",
        {"type": "a"},
    )
    assert (row["id"], row["attempt"]) == ("m-1", 1)


def test_what_tail_prints_can_be_published_again_without_loss(
    tailing: Any, publish: Any, cli: Any, url: str, read: Callable[[str, int], list[Message]]
) -> None:
    running = tailing("--json", "--limit", str(len(AWKWARD)))
    publish(*AWKWARD)
    _, out, _ = running.end()
    assert cli("publish", url, "copies", stdin=out).exit_code == 0

    def fields(message: Message) -> tuple[object, ...]:
        return message.value, message.key, dict(message.headers), message.timestamp, message.id

    copies = read("copies", len(AWKWARD))
    assert [fields(copy) for copy in copies] == [fields(message) for message in read("orders", len(AWKWARD))]


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_nothing_that_steers_a_terminal_is_printed(
    tailing: Any, publish: Any, option: tuple[str, ...]
) -> None:
    running = tailing("--limit", str(len(AWKWARD)), *option)
    publish(*AWKWARD)
    _, out, _ = running.end()
    assert len(out.splitlines()) == len(AWKWARD)
    assert all(line.isprintable() for line in out.splitlines())


def test_people_see_escapes_and_markup_as_they_are(tailing: Any, publish: Any) -> None:
    running = tailing("--limit", str(len(AWKWARD)))
    publish(*AWKWARD)
    _, out, _ = running.end()
    assert "größe \\x1b[31m\\x9b0m\\u202e" in out
    assert "[red]not markup[/red] :smile:" in out
    assert "<8 bytes: ff 00 62 69 6e 61 72 79>" in out
    assert "naïve=\\x07\\n" in out


def test_it_takes_nothing_from_a_group(tailing: Any, publish: Any, cli: Any, url: str) -> None:
    assert cli("declare", url, "orders", "--group", "billing").exit_code == 0
    running = tailing("--limit", "2")
    publish(Message("orders", b"1"), Message("orders", b"2"))
    assert running.end()[0] == 0
    assert cli("lag", url, "orders", "billing").stdout == "2\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_an_interrupt_ends_it_well(tailing: Any, publish: Any) -> None:
    running = tailing("--json")
    publish(Message("orders", b"1"))
    assert '"value": "1"' in running.line()  # at once, through a pipe
    running.interrupt()
    assert running.end() == (0, "", "")


def test_a_closed_pipe_ends_it_quietly(tailing: Any, publish: Any) -> None:
    running = tailing("--json")
    publish(Message("orders", b"1"))
    running.line()
    running.process.stdout.close()
    if os.name == "nt":  # there it notices with the next message
        publish(Message("orders", b"2"))
    assert running.process.wait(timeout=30) == 0
    assert running.process.stderr.read() == b""


def _numbered(publish: Any, *numbers: int) -> None:
    for number in numbers:
        publish(Message("orders", b"%d" % number, timestamp=datetime(2026, 1, number, tzinfo=UTC)))


@pytest.mark.parametrize(
    ("since", "values"),
    [
        ("earliest", ["2", "1", "4", "3"]),
        ("2026-01-03", ["4", "3"]),
        ("2026-01-02T01:00+02:00", ["2", "4", "3"]),
        ("3", ["2", "3", "4"]),
        ("10", ["1", "2", "3", "4"]),
    ],
)
def test_it_begins_where_it_is_told_and_goes_on(
    tailing: Any, publish: Any, cli: Any, url: str, since: str, values: list[str]
) -> None:
    cli("declare", url, "orders", "--group", "billing")
    _numbered(publish, 2, 1, 4, 3)
    running = tailing("--json", "--from", since, "--limit", str(len(values) + 1))
    assert [json.loads(running.line())["value"] for _ in values] == values
    _numbered(publish, 5)
    code, out, _ = running.end()
    assert (code, [row["value"] for row in _rows(out)]) == (0, ["5"])
    assert cli("topics", url, "--json").stdout == '{"topic": "orders", "group": "billing", "lag": 5}\n'


@pytest.mark.parametrize("since", ["yesterday", "0", "-1", ""])
def test_where_it_cannot_begin_is_wrong_use(cli: Any, url: str, since: str) -> None:
    cli("declare", url, "orders")
    result = cli("tail", url, "orders", f"--from={since}")
    assert (result.exit_code, f"--from {since!r}: expected earliest" in result.stderr) == (2, True)


def _rows(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]
