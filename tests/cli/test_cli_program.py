"""What holds for every command: help, version, exit codes, secrets, and the extra that it needs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCES = str(Path(__file__).parents[2] / "src")


def test_version_is_one_line(cli: Any) -> None:
    result = cli("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("things-kit")


def test_lag_counts_what_is_not_acknowledged(cli: Any, url: str) -> None:
    cli("declare", url, "orders", "--group", "billing", "--group", "mail")
    cli("publish", url, "orders", stdin="1\n2\n")
    assert cli("lag", url, "orders", "billing").stdout == "2\n"
    assert (
        cli("lag", url, "orders", "mail", "--json").stdout
        == '{"topic": "orders", "group": "mail", "lag": 2}\n'
    )


def test_declare_says_what_is_there_and_can_be_repeated(cli: Any, url: str) -> None:
    for _ in range(2):
        result = cli("declare", url, "orders", "--group", "billing", "--group", "billing")
        assert (result.exit_code, result.stdout) == (0, "declared orders with billing\n")
    assert cli("declare", url, "orders", "--json").stdout == '{"topic": "orders", "groups": []}\n'


@pytest.mark.parametrize("missing", ["typer", "rich", "jmespath"])
def test_without_the_extra_a_sentence_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from things_kit.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == f'things-kit: the command line needs {missing}: pip install "things-kit[cli]"\n'


@pytest.mark.parametrize(
    "arguments",
    [
        ("lag", "redix://user:geheim@host/0", "orders", "billing"),
        ("lag", "sqlite://user:geheim@host/a.db?nonsense=1", "orders", "billing"),
        ("amqp://user:geheim@host", "orders"),
        ("tail", "orders", "orders", "amqp://user:geheim@host"),
    ],
)
def test_no_password_is_printed(cli: Any, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    assert "geheim" not in result.output


def test_an_error_cannot_steer_the_terminal(cli: Any, url: str) -> None:
    result = cli("lag", f"{url}?\x1b[31m=1", "orders", "billing")
    assert result.exit_code == 2
    assert result.stderr.strip().isprintable()


def test_output_that_nobody_reads_is_no_failure(program: Any, url: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    running = program("lag", url, "orders", "billing", stdout=writing)
    os.close(writing)
    assert running.end() == (0, "", "")
