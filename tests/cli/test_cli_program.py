"""What holds for every command: help, version, exit codes, secrets, and the extra that it needs."""

import os
import subprocess
import sys
import tomllib
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


@pytest.mark.skipif(os.name == "nt", reason="there a program has no numbers of files")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_stream_that_is_closed(
    cli: Any, url: str, tmp_path: Path, closed: str
) -> None:
    """What is then printed would be written into the database."""
    (tmp_path / "orders.jsonl").write_text('{"id": "o-1"}\n')
    program = f'exec "$0" -m things_kit publish "{url}" orders "{tmp_path}/orders.jsonl" {closed}'
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    ended = subprocess.run(
        ["/bin/sh", "-c", program, sys.executable],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert cli("topics", url).stdout.split() == ["topic", "group", "lag", "orders", "no", "group"]


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


def test_output_that_nobody_reads_is_no_failure(program: Any, cli: Any, url: str) -> None:
    cli("declare", url, "orders", "--group", "billing")
    reading, writing = os.pipe()
    os.close(reading)
    running = program("lag", url, "orders", "billing", stdout=writing)
    os.close(writing)
    assert running.end() == (0, "", "")


@pytest.mark.parametrize(
    "words", [(), ("dlq",), ("dlq", "replay"), ("run",), ("publish",), ("tail",)], ids=" ".join
)
def test_the_help_of_a_flag_names_no_type(cli: Any, words: tuple[str, ...]) -> None:
    output = cli(*words, "--help").stdout
    assert "--help" in output
    assert "<bool>" not in output
    assert "range" not in output


def test_the_commands_are_grouped_by_what_they_are_for(cli: Any) -> None:
    output = cli("--help").stdout
    panels = [
        output.index(name)
        for name in ("Messages", "Topics and groups", "Applications", "Looking for trouble")
    ]
    assert panels == sorted(panels)
    assert panels[0] < output.index("dlq") < panels[1] < output.index("topics ")


def test_the_package_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "things_kit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("things-kit ")


def test_the_shell_completes_commands() -> None:
    asked = {
        **os.environ,
        "_THINGS_KIT_COMPLETE": "complete_bash",
        "COMP_WORDS": "things-kit dl",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "things_kit"], capture_output=True, text=True, env=asked, check=False
    )
    assert done.stdout.split() == ["dlq"]


def test_the_extra_all_has_every_other_extra() -> None:
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (everything,) = extras.pop("all")
    assert set(everything.removeprefix("things-kit[").removesuffix("]").split(",")) == extras.keys() - {
        "simulation",
        "testing",
    }
