"""`things-kit dlq`."""

import json
from collections.abc import Callable
from decimal import InvalidOperation
from typing import Any

import pytest

from things_kit.cli import dlq
from things_kit.messaging.message import Message

HOSTILE = "\x1b]0;owned\x07 [bold]\u202e"


@pytest.fixture
def dead(bury: Callable[..., None]) -> None:
    """Three dead letters in `orders-dlq`."""
    bury(
        [
            (
                Message("orders", b'{"n": 1}', key=b"k", id="m-1", headers={"type": "a"}),
                ValueError("bad amount"),
            ),
            (Message("orders", b"\xff", id="m-2"), ValueError(HOSTILE)),
            (Message("orders", b"3", id="m-3"), InvalidOperation("who")),
        ]
    )


def _ids(cli: Any, url: str) -> list[str]:
    return sorted(
        json.loads(line)["id"] for line in cli("dlq", "list", url, "orders-dlq", "--json").stdout.splitlines()
    )


@pytest.mark.usefixtures("dead")
def test_list_says_what_failed_and_why(cli: Any, url: str) -> None:
    output = cli("dlq", "list", url, "orders-dlq", "--json").stdout
    letter = next(row for row in map(json.loads, output.splitlines()) if row["id"] == "m-1")
    assert letter["timestamp"].endswith("Z")
    del letter["timestamp"]
    assert letter == {
        "id": "m-1",
        "original_topic": "orders",
        "group": "billing",
        "attempts": 2,
        "error_type": "ValueError",
        "error": "bad amount",
        "key": "k",
    }


@pytest.mark.usefixtures("dead")
def test_the_table_shows_them_to_people_safely(cli: Any, url: str) -> None:
    output = cli("dlq", "list", url, "orders-dlq").stdout
    assert all(
        text in output
        for text in ("m-1", "m-2", "m-3", "orders", "billing", "bad amount", "InvalidOperation")
    )
    assert all(line.isprintable() for line in output.splitlines())
    assert "[bold]" in output


@pytest.mark.usefixtures("dead")
def test_list_says_that_there_are_more_than_its_limit(cli: Any, url: str) -> None:
    output = cli("dlq", "list", url, "orders-dlq", "--limit", "2").stdout
    assert sum(f"m-{number}" in output for number in (1, 2, 3)) == 2
    assert "more than these 2" in output


@pytest.mark.usefixtures("dead")
def test_looking_takes_nothing(cli: Any, url: str) -> None:
    assert _ids(cli, url) == _ids(cli, url) == ["m-1", "m-2", "m-3"]
    assert cli("lag", url, "orders-dlq", "dead-letters").stdout == "3\n"


def test_a_topic_without_dead_letters_has_none(cli: Any, url: str) -> None:
    cli("declare", url, "orders-dlq", "--group", "dead-letters")
    result = cli("dlq", "list", url, "orders-dlq")
    assert (result.exit_code, result.stdout) == (0, "no dead letters in orders-dlq\n")


@pytest.mark.usefixtures("dead")
def test_show_has_everything_of_one(cli: Any, url: str) -> None:
    output = cli("dlq", "show", url, "orders-dlq", "m-1").stdout
    assert all(text in output for text in ("m-1", "original-topic", "bad amount", '"n": 1', "type"))
    row = json.loads(cli("dlq", "show", url, "orders-dlq", "m-2", "--json").stdout)
    assert row["value"] == {"base64": "/w=="}
    assert row["headers"]["error"] == HOSTILE
    assert all(
        line.isprintable() for line in cli("dlq", "show", url, "orders-dlq", "m-2").stdout.splitlines()
    )


@pytest.mark.usefixtures("dead")
def test_show_of_one_that_is_not_there_fails(cli: Any, url: str) -> None:
    result = cli("dlq", "show", url, "orders-dlq", "m-9")
    assert result.exit_code == 1
    assert "there is no dead letter 'm-9' in orders-dlq" in result.stderr


@pytest.mark.usefixtures("dead")
@pytest.mark.parametrize(
    ("options", "replayed", "left"),
    [
        ((), 3, []),
        (("--id", "m-2"), 1, ["m-1", "m-3"]),
        (("--error-type", "InvalidOperation"), 1, ["m-1", "m-2"]),
        (("--error-type", "decimal.InvalidOperation"), 1, ["m-1", "m-2"]),
        (("--error-type", "TypeError"), 0, ["m-1", "m-2", "m-3"]),
    ],
)
def test_replay_sends_back_what_was_meant(
    cli: Any, url: str, options: tuple[str, ...], replayed: int, left: list[str]
) -> None:
    result = cli("dlq", "replay", url, "orders-dlq", "--json", *options)
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"replayed": replayed})
    assert _ids(cli, url) == left
    assert cli("lag", url, "orders", "billing").stdout == f"{replayed}\n"


@pytest.mark.usefixtures("dead")
def test_replay_to_another_topic(cli: Any, url: str, read: Callable[[str, int], list[Message]]) -> None:
    result = cli("dlq", "replay", url, "orders-dlq", "--id", "m-1", "--to", "repair")
    assert (result.exit_code, result.stdout) == (0, "replayed 1 dead letter to repair\n")
    (message,) = read("repair", 1)
    assert (message.id, message.value, message.key) == ("m-1", b'{"n": 1}', b"k")


@pytest.mark.usefixtures("dead")
def test_replay_stops_at_its_limit(cli: Any, url: str) -> None:
    assert cli("dlq", "replay", url, "orders-dlq", "--limit", "2").exit_code == 0
    assert len(_ids(cli, url)) == 1


@pytest.mark.usefixtures("dead")
@pytest.mark.parametrize("command", [("replay",), ("purge", "--yes")])
def test_an_id_that_is_not_there_is_a_failure_that_names_it(
    cli: Any, url: str, command: tuple[str, ...]
) -> None:
    name, *options = command
    result = cli("dlq", name, url, "orders-dlq", *options, "--id", "m-9", "--id", "m-1")
    assert result.exit_code == 1
    assert "no dead letter m-9" in result.stderr
    assert _ids(cli, url) == ["m-2", "m-3"]


@pytest.mark.usefixtures("dead")
def test_purge_with_nobody_to_ask_is_wrong_use(cli: Any, url: str) -> None:
    result = cli("dlq", "purge", url, "orders-dlq", stdin="y\n")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert len(_ids(cli, url)) == 3


@pytest.mark.usefixtures("dead")
def test_purge_with_yes_gives_up_what_was_meant(cli: Any, url: str) -> None:
    assert (
        cli("dlq", "purge", url, "orders-dlq", "--yes", "--id", "m-1").stdout
        == "purged 1 dead letter of orders-dlq\n"
    )
    assert _ids(cli, url) == ["m-2", "m-3"]
    assert cli("dlq", "purge", url, "orders-dlq", "--yes", "--json").stdout == '{"purged": 2}\n'
    assert _ids(cli, url) == []


@pytest.mark.usefixtures("dead")
@pytest.mark.parametrize(("answer", "left"), [("y\n", 1), ("n\n", 3)])
def test_purge_asks_with_the_number(
    cli: Any, url: str, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    monkeypatch.setattr(dlq, "interactive", lambda: True)
    result = cli("dlq", "purge", url, "orders-dlq", "--error-type", "ValueError", stdin=answer)
    assert result.exit_code == 0
    assert "Give up 2 dead letters of orders-dlq" in result.stderr
    assert len(_ids(cli, url)) == left


COMMANDS = [
    ("list",),
    ("list", "--by", "error"),
    ("show", "m-1"),
    ("replay",),
    ("replay", "--dry-run"),
    ("purge", "--yes"),
]


def _dlq(cli: Any, url: str, topic: str, command: tuple[str, ...]) -> Any:
    name, *options = command
    return cli("dlq", name, url, topic, *options)


@pytest.mark.usefixtures("dead")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_misspelt_topic_is_said_with_those_that_there_are(
    cli: Any, url: str, command: tuple[str, ...]
) -> None:
    result = _dlq(cli, url, "order-dlq", command)
    assert result.exit_code == 1
    assert "there is no topic 'order-dlq'; there are: orders, orders-dlq" in result.stderr
    assert {json.loads(line)["topic"] for line in cli("topics", url, "--json").stdout.splitlines()} == {
        "orders", "orders-dlq",
    }  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_ordinary_topic_is_left_as_it_is(
    cli: Any, url: str, publish: Callable[..., None], command: tuple[str, ...]
) -> None:
    cli("declare", url, "orders", "--group", "billing")
    publish(*(Message("orders", b"%d" % number) for number in range(100)))
    result = _dlq(cli, url, "orders", command)
    assert result.exit_code == 1
    assert "orders cannot be read as the group 'dead-letters'" in result.stderr
    assert cli("topics", url, "--json").stdout == '{"topic": "orders", "group": "billing", "lag": 100}\n'


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_messages_that_are_no_dead_letters_are_counted_and_stay(
    cli: Any, url: str, publish: Callable[..., None], command: tuple[str, ...]
) -> None:
    cli("declare", url, "orders", "--group", "dead-letters")
    publish(*(Message("orders", b"%d" % number) for number in range(100)))
    result = _dlq(cli, url, "orders", command)
    assert result.exit_code == 1
    if "show" not in command:
        assert (
            "nothing in orders is a dead letter; 100 messages are there, which --any takes too"
            in result.stderr
        )
    assert cli("lag", url, "orders", "dead-letters").stdout == "100\n"


@pytest.mark.usefixtures("dead")
def test_what_is_no_dead_letter_among_them_is_counted_and_stays(
    cli: Any, url: str, publish: Callable[..., None]
) -> None:
    publish(Message("orders-dlq", b"5", id="plain"))
    assert _ids(cli, url) == ["m-1", "m-2", "m-3"]
    result = cli("dlq", "purge", url, "orders-dlq", "--yes")
    assert (result.exit_code, result.stdout) == (0, "purged 3 dead letters of orders-dlq\n")
    assert "1 message is in orders-dlq that is no dead letter" in result.stderr
    assert "plain" in cli("dlq", "list", url, "orders-dlq", "--any").stdout
    cli("dlq", "replay", url, "orders-dlq", "--any", "--to", "orders")
    assert cli("lag", url, "orders-dlq", "dead-letters").stdout == "0\n"


def test_any_is_replayed_only_to_where_it_is_told(cli: Any, url: str) -> None:
    result = cli("dlq", "replay", url, "orders-dlq", "--any")
    assert (result.exit_code, "give --to TOPIC" in result.stderr) == (2, True)


@pytest.mark.usefixtures("dead")
def test_a_dry_run_says_what_a_replay_would_do_and_does_nothing(cli: Any, url: str) -> None:
    result = cli("dlq", "replay", url, "orders-dlq", "--dry-run")
    assert result.stdout == "would replay 3 dead letters\n  3 to orders for billing\n"
    assert cli("dlq", "replay", url, "orders-dlq", "--dry-run", "--json").stdout == '{"would_replay": 3}\n'
    assert cli("lag", url, "orders", "billing").stdout == "0\n"
    assert _ids(cli, url) == ["m-1", "m-2", "m-3"]


def test_they_are_listed_in_the_order_in_which_they_failed(
    cli: Any, url: str, publish: Callable[..., None]
) -> None:
    cli("declare", url, "orders-dlq", "--group", "dead-letters")
    for number in (2, 3, 1):
        headers = {
            "original-topic": "orders", "consumer-group": "billing", "error-type": "shop.Unknown",
            "error": f"no order {number}00 of 2026", "timestamp": f"2026-01-0{number}T12:00:00Z",
        }  # fmt: skip
        publish(Message("orders-dlq", b"", id=f"m-{number}", headers=headers))
    rows = [json.loads(line) for line in cli("dlq", "list", url, "orders-dlq", "--json").stdout.splitlines()]
    assert [row["id"] for row in rows] == ["m-1", "m-2", "m-3"]
    rows = [
        json.loads(line)
        for line in cli("dlq", "list", url, "orders-dlq", "--json", "--limit", "2").stdout.splitlines()
    ]
    assert [row["id"] for row in rows] == ["m-1", "m-2"]


def test_they_are_counted_by_their_error(cli: Any, url: str, publish: Callable[..., None]) -> None:
    cli("declare", url, "orders-dlq", "--group", "dead-letters")
    for number in range(5):
        error = f"no order {number}" if number else "the bank is closed"
        headers = {
            "original-topic": "orders", "consumer-group": "billing", "error-type": "shop.Unknown",
            "error": error, "timestamp": f"2026-01-0{number + 1}T12:00:00Z",
        }  # fmt: skip
        publish(Message("orders-dlq", b"", id=f"m-{number}", headers=headers))
    first, second = [
        json.loads(line)
        for line in cli("dlq", "list", url, "orders-dlq", "--by", "error", "--json").stdout.splitlines()
    ]
    assert first == {
        "error_type": "shop.Unknown", "error": "no order …", "count": 4, "first": "2026-01-02T12:00:00Z",
        "last": "2026-01-05T12:00:00Z", "example": "m-1",
    }  # fmt: skip
    assert (second["error"], second["count"]) == ("the bank is closed", 1)
    assert "no order …" in cli("dlq", "list", url, "orders-dlq", "--by", "error").stdout
