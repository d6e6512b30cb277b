"""`things-kit doctor`."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from things_kit.brokers.connect import connect
from things_kit.cli import doctor
from things_kit.engine import diagnosis
from things_kit.engine.diagnosis import diagnose
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.facts import Facts, Factual, Question
from things_kit.messaging.message import Message


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "WATCH", 0.01)


def rows(result: Any) -> list[dict[str, str]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def about(result: Any, subject: str) -> list[tuple[str, str]]:
    return [(row["level"], row["what"]) for row in rows(result) if row["subject"] == subject]


# --- the installation


def test_without_a_url_the_installation_is_looked_at(cli: Any) -> None:
    result = cli("doctor")
    assert result.exit_code == 0
    assert "Python: 3." in result.stdout
    assert "extra cli: Installed: " in result.stdout
    assert "sqlite://" in result.stdout


def test_an_extra_that_is_missing_is_no_fault(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_extras", lambda: {"gravel": ["no-such-client-library"]})
    result = cli("doctor", "--json")
    assert result.exit_code == 0
    assert about(result, "extra gravel") == [("ok", "Not installed: no-such-client-library.")]
    (remedy,) = [row["remedy"] for row in rows(result) if row["subject"] == "extra gravel"]
    assert 'pip install "things-kit[gravel]"' in remedy


def test_questions_about_a_broker_need_its_url(cli: Any) -> None:
    result = cli("doctor", "--topic", "orders")
    assert result.exit_code == 2
    assert result.stderr.startswith("things-kit: ")


# --- brokers


def test_a_broker_that_is_well_is_fine(cli: Any) -> None:
    result = cli("doctor", "memory://", "--topic", "orders", "--group", "billing")
    assert result.exit_code == 0
    assert "memory://: It answers, in " in result.stdout
    assert "error" not in result.stdout


@pytest.fixture
def file(cli: Any, url: str) -> str:
    """The URL of a file that is there."""
    cli("declare", url, "payments")
    return url


def test_json_has_a_row_for_each_finding(cli: Any, file: str) -> None:
    result = cli("doctor", file, "--json")
    assert result.exit_code == 0
    assert all(row.keys() == {"level", "subject", "what", "remedy"} for row in rows(result))


@pytest.mark.parametrize("bad", ["events.db", "nothing://x", "sqlite:///{}/a.db?leese=3"])
def test_a_bad_url_is_wrong_use(cli: Any, tmp_path: Path, bad: str) -> None:
    result = cli("doctor", bad.format(tmp_path))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_a_name_that_cannot_be_is_wrong_use_and_opens_nothing(cli: Any, url: str, tmp_path: Path) -> None:
    assert cli("doctor", url, "--topic", "").exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [("--concurrency", "0"), ("--retry-span", "-1")])
def test_an_option_that_cannot_be_is_wrong_use(cli: Any, url: str, option: Sequence[str]) -> None:
    assert cli("doctor", url, *option).exit_code == 2


def test_a_broker_that_cannot_be_reached_is_an_error_with_a_remedy(cli: Any, tmp_path: Path) -> None:
    result = cli("doctor", f"sqlite:///{tmp_path}/nowhere/events.db", "--json")
    assert result.exit_code == 1
    (row,) = rows(result)
    assert row["level"] == "error"
    assert "does not exist" in row["what"]
    assert row["remedy"]
    assert result.stderr == ""


def test_a_broker_that_stays_away_is_not_waited_out(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "PATIENCE", 0.5)
    path = tmp_path / "events.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        result = cli("doctor", f"sqlite:///{path}", "--json")
    assert result.exit_code == 1
    assert [row["level"] for row in rows(result)] == ["error"]


def test_nothing_found_steers_the_terminal(cli: Any, file: str) -> None:
    result = cli("doctor", file, "--topic", "\x1b[31mred")
    assert "\x1b" not in result.stdout
    assert "\\x1b[31mred" in result.stdout


# --- what waits


def test_dead_letters_that_wait_are_a_warning(cli: Any, url: str, bury: Callable[..., None]) -> None:
    bury([(Message("orders", b"1"), ValueError("no")), (Message("orders", b"2"), ValueError("no"))])
    result = cli("doctor", url, "--topic", "orders", "--json")
    assert result.exit_code == 0
    assert about(result, "dead letter orders-dlq") == [("warning", "Dead letters wait: 2.")]


def test_a_group_that_nobody_receives_for_is_an_error(
    cli: Any, url: str, publish: Callable[..., None]
) -> None:
    cli("declare", url, "orders", "--group", "billing")
    publish(Message("orders", b"1"))
    result = cli("doctor", url, "--topic", "orders", "--group", "billing", "--json")
    assert result.exit_code == 1
    levels = [level for level, _ in about(result, "group billing")]
    assert levels == ["ok", "error"]


async def test_a_group_that_is_received_for_is_fine(url: str) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handle(message: Message) -> None:
        begun.set()
        await go_on.wait()

    async with connect(url) as broker, broker.consumer("orders", group="billing", handler=handle):
        await broker.producer().publish(Message("orders", b"1"))
        await begun.wait()
        findings = await diagnose(broker, Question("orders", "billing"))
        go_on.set()
    assert {finding.level for finding in findings} == {"ok"}


async def test_a_lag_that_grows_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect("memory://") as broker:
        lags = iter([5, 9, 0])

        async def lag(topic: str, group: str) -> int:
            return next(lags)

        monkeypatch.setattr(broker, "lag", lag)
        findings = await diagnose(broker, Question("orders", "billing"))
    assert [f.level for f in findings if f.subject == "group billing"] == ["warning"]
    assert any("9 messages behind in orders, 4 more" in f.what for f in findings)


@pytest.mark.parametrize(
    ("lags", "moves"), [((20_000, 20_000, 0), "not get less"), ((20_000, 15_000, 0), "catching up")]
)
async def test_a_large_lag_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, lags: tuple[int, ...], moves: str
) -> None:
    async with connect("memory://") as broker:
        answers = iter(lags)

        async def lag(topic: str, group: str) -> int:
            return next(answers)

        monkeypatch.setattr(broker, "lag", lag)
        findings = await diagnose(broker, Question("orders", "billing"))
    (found,) = [f for f in findings if f.subject == "group billing"]
    assert found.level == "warning"
    assert moves in found.what


async def test_a_broker_that_goes_away_meanwhile_is_an_error(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    async with connect(url) as broker:
        driver = broker.transmission.driver
        assert isinstance(driver, Factual)

        async def facts(question: Question) -> Facts:
            raise ConnectionLost("it went")

        monkeypatch.setattr(driver, "facts", facts)
        findings = await diagnose(broker, Question())
    assert findings[-1].level == "error"
    assert "it went" in findings[-1].what


# --- the file of sqlite://


def test_a_topic_that_is_not_in_the_file_is_a_warning(
    cli: Any, url: str, publish: Callable[..., None]
) -> None:
    publish(Message("orders", b"1"))
    result = cli("doctor", url, "--topic", "order", "--json")
    assert about(result, "topic order") == [("warning", "There is no such topic; there are orders.")]
    result = cli("doctor", url, "--topic", "orders", "--group", "billing", "--json")
    assert [level for level, _ in about(result, "group billing")] == ["ok", "warning"]


def test_synchronous_normal_is_a_warning(cli: Any, file: str) -> None:
    assert [level for level, _ in about(cli("doctor", file, "--json"), "synchronous")] == ["ok"]
    result = cli("doctor", f"{file}?synchronous=normal", "--json")
    assert [level for level, _ in about(result, "synchronous")] == ["warning"]


@pytest.mark.parametrize(("free", "level"), [(10, "error"), (10**8, "warning"), (10**10, "ok")])
def test_a_full_disk_is_an_error(
    cli: Any, file: str, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    class Usage:
        def __init__(self) -> None:
            self.free = free

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage())
    assert [level for level, _ in about(cli("doctor", file, "--json"), "disk")] == [level]
