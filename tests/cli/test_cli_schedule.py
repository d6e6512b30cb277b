"""`things-kit publish --after`, `--at` and `--schedule-id`, and `things-kit schedule`."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from things_kit.messaging.message import Message

Read = Callable[[str, int], list[Message]]

FAR = "2999-01-31T12:00:00Z"


def test_what_is_due_comes(cli: Any, url: str, read: Read) -> None:
    assert cli("publish", url, "orders", "--after", "0", stdin='"a"\n"b"\n').exit_code == 0
    assert [message.value for message in read("orders", 2)] == [b'"a"', b'"b"']


def test_what_is_to_come_is_listed_until_it_is_cancelled(cli: Any, url: str) -> None:
    options = ("--at", FAR, "--schedule-id", "reminder")
    assert cli("publish", url, "orders", *options, stdin='{"value": 1, "id": "m-1"}\n').exit_code == 0
    listed = cli("schedule", "list", url, "orders", "--json")
    found = json.loads(listed.stdout)
    assert (found["schedule_id"], found["due"], found["message"]["id"]) == ("reminder", FAR, "m-1")
    assert cli("schedule", "list", url, "orders").stdout == f"{FAR}  reminder  m-1\n"
    done = cli("schedule", "cancel", url, "orders", "reminder")
    assert (done.exit_code, done.stdout) == (0, "cancelled reminder\n")
    assert cli("schedule", "list", url, "orders").stdout == "nothing is to come in orders\n"


def test_what_cannot_be_cancelled_is_exit_code_1(cli: Any, url: str) -> None:
    cli("declare", url, "orders")
    result = cli("schedule", "cancel", url, "orders", "reminder")
    assert result.exit_code == 1
    assert "too late" in result.stderr


@pytest.mark.parametrize("time", ["tomorrow", "2999-01-31T12:00"])
def test_a_time_without_a_zone_is_wrong_use(cli: Any, url: str, time: str) -> None:
    result = cli("publish", url, "orders", "--at", time, stdin="1\n")
    assert result.exit_code == 2
    assert "a time with its zone" in result.stderr


def test_a_schedule_id_names_one_message(cli: Any, url: str) -> None:
    result = cli("publish", url, "orders", "--after", "60", "--schedule-id", "a", stdin="1\n2\n")
    assert result.exit_code == 1
    assert "one message" in result.stderr
