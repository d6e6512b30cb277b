"""`things-kit publish`."""

import os
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from things_kit.cli import source
from things_kit.cli.lines import Template
from things_kit.cli.publish import Publication
from things_kit.cli.source import Source
from things_kit.messaging.errors import BrokerUnavailable, PublishError, ThingsKitError
from things_kit.messaging.message import Message

Read = Callable[[str, int], list[Message]]


def test_each_line_is_a_message(cli: Any, url: str, read: Read) -> None:
    result = cli("publish", url, "orders", stdin='{"total": 1}\n"two"\n3\n')
    assert (result.exit_code, result.stdout) == (0, "published 3 messages to orders\n")
    assert [message.value for message in read("orders", 3)] == [b'{"total": 1}', b'"two"', b"3"]


def test_an_object_with_value_is_the_message_that_it_describes(cli: Any, url: str, read: Read) -> None:
    line = (
        '{"value": {"n": 1.0}, "key": "k", "headers": {"type": "a", "n": 2, "none": null},'
        ' "timestamp": "2026-01-31T12:00:00.5+01:00", "id": "m-1", "offset": 9, "attempt": 4}\n'
    )
    assert cli("publish", url, "orders", stdin=line).exit_code == 0
    (message,) = read("orders", 1)
    assert (message.value, message.key, message.headers) == (b'{"n": 1.0}', b"k", {"type": "a", "n": "2"})
    assert (message.timestamp, message.id) == (datetime(2026, 1, 31, 11, 0, 0, 500000, UTC), "m-1")


def test_a_value_that_is_a_string_is_its_text(cli: Any, url: str, read: Read) -> None:
    cli(
        "publish",
        url,
        "orders",
        stdin='{"value": "caf\\u00e9\\n"}\n{"value": {"base64": "/wA="}}\n{"value": ""}\n',
    )
    assert [message.value for message in read("orders", 3)] == ["café\n".encode(), b"\xff\x00", b""]


def test_an_object_with_a_field_that_no_message_has_is_a_value(cli: Any, url: str, read: Read) -> None:
    cli("publish", url, "readings", stdin='{"sensor": "a", "value": 21.5}\n')
    assert read("readings", 1)[0].value == b'{"sensor": "a", "value": 21.5}'


def test_key_and_headers_are_taken_from_the_json(cli: Any, url: str, read: Read) -> None:
    lines = '{"type": "push", "payload": {"repo": {"name": "kit"}, "n": 7}}\n{"type": null}\n'
    options = (
        "--header",
        "type=.type?",
        "--header",
        "n=.payload.n?",
        "--header",
        "source=hook",
        "--key",
        ".payload.repo.name?",
    )
    assert cli("publish", url, "hooks", *options, stdin=lines).exit_code == 0
    first, second = read("hooks", 2)
    assert (first.key, first.headers) == (b"kit", {"type": "push", "n": "7", "source": "hook"})
    assert (second.key, second.headers) == (None, {"source": "hook"})


@pytest.mark.parametrize("option", [("--key", ".id"), ("--header", "id=.id")])
@pytest.mark.parametrize("line", ['{"n": 2}', '{"id": null}', "7"])
def test_what_a_line_lacks_is_an_error_with_its_number(
    cli: Any, url: str, read: Read, option: tuple[str, str], line: str
) -> None:
    result = cli("publish", url, "orders", *option, stdin=f'{{"id": "a"}}\n{line}\n')
    assert result.exit_code == 1
    assert (
        "line 2 has nothing at .id; write .id? where it may be missing; 1 message published" in result.stderr
    )
    assert cli("publish", url, "orders", option[0], f"{option[1]}?", stdin=line).exit_code == 0
    assert len(read("orders", 2)) == 2


def test_raw_takes_every_line_as_it_is(cli: Any, url: str, read: Read) -> None:
    assert cli("publish", url, "logs", "--raw", stdin=b"no json\r\n\n  {\n\xff").exit_code == 0
    assert [message.value for message in read("logs", 4)] == [b"no json", b"", b"  {", b"\xff"]


def test_a_line_that_is_no_json_names_its_number_and_what_was_published(
    cli: Any, url: str, read: Read
) -> None:
    result = cli("publish", url, "orders", stdin='1\n\n2\n{"a"\n3\n')
    assert result.exit_code == 1
    assert "line 4 is no JSON" in result.stderr
    assert "2 messages published before it" in result.stderr
    assert [message.value for message in read("orders", 2)] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"value": {"base64": "!"}}', "value: base64"),
        ('{"value": 1, "headers": []}', "headers: expected an object"),
        ('{"value": 1, "timestamp": "yesterday"}', "timestamp: expected a time"),
        ('{"value": 1, "timestamp": "2026-01-31T12:00:00"}', "with its offset"),
        ('{"value": 1, "id": 5}', "id: expected a string"),
        ("[" * 100_000, "is no JSON"),
        ('"\\ud800"', "is no JSON"),
    ],
)
def test_a_line_that_describes_no_message_is_refused(cli: Any, url: str, line: str, complaint: str) -> None:
    result = cli("publish", url, "orders", stdin=line)
    assert result.exit_code == 1
    assert "line 1" in result.stderr
    assert complaint in result.stderr


@pytest.mark.parametrize(
    "option", [("--key", ".a["), ("--header", "type"), ("--header", "type=.a["), ("--nonsense",)]
)
def test_an_option_that_is_not_understood_is_wrong_use(cli: Any, url: str, option: tuple[str, ...]) -> None:
    result = cli("publish", url, "orders", *option, stdin="1\n")
    assert result.exit_code == 2
    assert option[-1].rpartition("=")[2] in result.stderr


@pytest.mark.parametrize("bad", ["events.db", "nothing://x", "sqlite:///{}/a.db?leese=3"])
def test_a_bad_url_is_wrong_use(cli: Any, tmp_path: Path, bad: str) -> None:
    result = cli("publish", bad.format(tmp_path), "orders", stdin="1\n")
    assert result.exit_code == 2
    assert result.stderr.startswith("things-kit: ")
    assert result.stderr.count("\n") == 1


def test_a_file_is_read_to_its_last_line(cli: Any, url: str, tmp_path: Path, read: Read) -> None:
    file = tmp_path / "orders.jsonl"
    file.write_bytes(
        b"\xef\xbb\xbf" + b"".join(b'{"n": %d}\n' % number for number in range(5000)) + b'{"n": "last"}'
    )
    result = cli("publish", url, "orders", str(file), "--json")
    assert (result.exit_code, result.stdout) == (0, '{"published": 5001}\n')
    messages = read("orders", 5001)
    assert (messages[0].value, messages[-1].value) == (b'{"n": 0}', b'{"n": "last"}')


def test_a_file_that_is_not_there_is_wrong_use(cli: Any, url: str, tmp_path: Path) -> None:
    result = cli("publish", url, "orders", str(tmp_path / "none.jsonl"))
    assert result.exit_code == 2
    assert "none.jsonl cannot be read" in result.stderr


def test_refused_lines_are_named_and_the_others_published(cli: Any, tmp_path: Path) -> None:
    small = f"sqlite:///{tmp_path}/small.db?max_message_bytes=200"
    long = "x" * 500
    result = cli("publish", small, "orders", stdin=f'"a"\n"{long}"\n"b"\n')
    assert result.exit_code == 1
    assert "line 2 was refused: MessageTooLarge" in result.stderr
    assert "published 2 messages" in result.stdout


class _Leaving:
    """A producer whose broker goes away after the first line of the second batch."""

    def __init__(self) -> None:
        self.batches = 0

    async def publish(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    async def publish_batch(self, messages: Sequence[Message], **_: Any) -> None:
        self.batches += 1
        if self.batches == 2:
            away = BrokerUnavailable("the broker is away")
            raise PublishError("not published", dict.fromkeys(range(1, len(messages)), away))

    async def close(self) -> None:
        raise NotImplementedError


async def test_a_broker_that_goes_away_ends_it_with_what_was_confirmed() -> None:
    publication = Publication(_Leaving(), Template("orders"), raw=False)
    with pytest.raises(BrokerUnavailable, match="the broker is away; 1001 messages published, line 1002 not"):
        await publication.run(Source(BytesIO(b"1\n" * 3000)), lambda taken, confirmed: None)


async def test_input_without_line_ends_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LONGEST_LINE", 1 << 20)
    endless = BytesIO(bytes(3 << 20))
    publication = Publication(_Leaving(), Template("orders"), raw=True)
    with pytest.raises(ThingsKitError, match="a line is longer than 1 MiB"):
        await publication.run(Source(endless), lambda taken, confirmed: None)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_an_interrupt_publishes_what_was_read(program: Any, url: str, read: Read) -> None:
    running = program("publish", url, "orders")
    running.process.stdin.write(b"1\n2\n[3")
    running.process.stdin.flush()
    assert [message.value for message in read("orders", 2)] == [b"1", b"2"]  # though the input has not ended
    running.interrupt()
    running.process.wait(timeout=30)  # though the input has still not ended
    assert running.end() == (128 + signal.SIGINT, "published 2 messages to orders\n", "")
