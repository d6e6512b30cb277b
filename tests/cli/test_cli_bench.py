"""`things-kit bench`: what it measures, and that it leaves nothing behind."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Program
from things_kit.testing.conformance.waiting import eventually

FIGURES = {"publish_batch", "publish", "consume", "latency_median", "latency_p99"}


def test_it_measures_publishing_consuming_and_latency(cli: Cli) -> None:
    result = cli("bench", "memory://", "--messages", "50", "--size", "10", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert (printed.pop("messages"), printed.pop("size")) == (50, 10)
    assert set(printed) == FIGURES
    assert all(figure > 0 for figure in printed.values())
    assert printed["latency_p99"] >= printed["latency_median"]


def test_people_get_a_table(cli: Cli) -> None:
    result = cli("bench", "memory://", "--messages", "5")
    assert result.exit_code == 0, result.output
    assert "5 messages of 200 bytes" in result.stdout
    assert "publish, 5 at once" in result.stdout


def test_its_topic_is_gone_afterwards(cli: Cli, tmp_path: Path) -> None:
    result = cli("bench", f"sqlite:///{tmp_path}/b.db", "--messages", "20")
    assert result.exit_code == 0, result.output
    with sqlite3.connect(tmp_path / "b.db") as file:
        assert file.execute("SELECT count(*) FROM things_kit_topic").fetchone() == (0,)
    file.close()


async def test_interrupted_it_leaves_no_topic(program: Callable[..., Program], tmp_path: Path) -> None:
    running = program("bench", f"sqlite:///{tmp_path}/b.db", "--messages", "200000", "--keys", "7")
    with sqlite3.connect(tmp_path / "b.db", timeout=30) as file:
        await eventually(lambda: _topics(file), within=60)
    file.close()
    running.interrupt()
    code, out, err = running.end()
    assert (code, out, err) == (130, "", "")
    with sqlite3.connect(tmp_path / "b.db") as file:
        assert _topics(file) == 0
    file.close()


def _topics(file: sqlite3.Connection) -> int:
    try:
        found: int = file.execute("SELECT count(*) FROM things_kit_topic").fetchone()[0]
    except sqlite3.OperationalError:  # not made yet
        return 0
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nope://"], 2, "unknown broker nope://"),
        (["memory://", "--messages", "0"], 2, "--messages"),
        (["kafka://127.0.0.1:1?publish_timeout=0.2"], 1, "did not answer"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    cli: Cli, arguments: list[str], code: int, sentence: str
) -> None:
    result = cli("bench", *arguments)
    assert result.exit_code == code
    assert sentence in result.output
    assert "Traceback" not in result.output
