"""`things-kit topics`, and that commands which only look create nothing."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from things_kit import ConfigError
from things_kit.brokers.connect import connect
from things_kit.messaging.message import Message

LOOKING = [
    ("topics",), ("lag", "orders", "billing"), ("tail", "orders"), ("tail", "orders", "--from", "earliest"),
    ("dlq list", "orders-dlq"), ("dlq show", "orders-dlq", "m-1"), ("doctor",),
]  # fmt: skip


@pytest.mark.parametrize("command", LOOKING, ids=" ".join)
def test_looking_at_a_file_that_is_not_there_makes_none(
    cli: Any, tmp_path: Path, url: str, command: tuple[str, ...]
) -> None:
    name, *arguments = command
    result = cli(*name.split(), url, *arguments)
    assert result.exit_code != 0
    assert "does not exist" in result.output + result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [each for each in LOOKING if len(each) > 1], ids=" ".join)
def test_looking_at_a_topic_that_is_not_there_makes_none(
    cli: Any, url: str, command: tuple[str, ...]
) -> None:
    cli("declare", url, "payments", "--group", "billing")
    name, *arguments = command
    result = cli(*name.split(), url, *arguments)
    assert result.exit_code == 1
    assert f"there is no topic {arguments[0]!r}; there is: payments" in result.stderr
    assert cli("topics", url, "--json").stdout == '{"topic": "payments", "group": "billing", "lag": 0}\n'


def test_a_group_that_is_not_there_is_said_with_those_that_there_are(cli: Any, url: str) -> None:
    cli("declare", url, "orders", "--group", "billing")
    result = cli("lag", url, "orders", "biling")
    assert result.exit_code == 1
    assert "orders has no group 'biling'; there is: billing" in result.stderr


def test_topics_shows_groups_lag_and_dead_letters_in_one_table(
    cli: Any, url: str, bury: Callable[..., None], publish: Callable[..., None]
) -> None:
    bury([(Message("orders", b"1"), ValueError("bad"))])
    publish(Message("orders", b"2"))
    lines = cli("topics", url).stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["topic", "group", "lag"],
        ["orders", "billing", "1"],
        ["orders-dlq", "dead-letters", "1", "dead", "letters", "wait"],
        ["witness", "0"],
    ]
    rows = [json.loads(line) for line in cli("topics", url, "--json").stdout.splitlines()]
    assert rows[0] == {"topic": "orders", "group": "billing", "lag": 1}


def test_a_broker_that_is_told_to_declare_nothing_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        asyncio.run(connect(f"sqlite:///{tmp_path}/typo.db?declare=false").open())
    assert list(tmp_path.iterdir()) == []
