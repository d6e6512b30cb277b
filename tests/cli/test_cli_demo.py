"""`things-kit demo`, and the parts that its honesty rests on."""

import asyncio
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import rich.console

from things_kit.brokers.connect import BUILT_IN, connect
from things_kit.cli.demo.audit import Audit
from things_kit.cli.demo.command import impatient
from things_kit.cli.demo.crew import Crew
from things_kit.cli.demo.inventory import inventory
from things_kit.cli.demo.plan import Plan
from things_kit.cli.demo.planted import Planted
from things_kit.cli.demo.recorded import FileChanged, FileMissing
from things_kit.cli.demo.verdict import checks
from things_kit.cli.running import CommandFailed
from things_kit.messaging.message import Message

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path / "planted")


# --- the parts


def test_the_inventory_has_the_recorded_files_with_their_digests() -> None:
    (mine,) = [entry for entry in inventory() if entry.file.path == rich.console.__file__]
    assert mine.distribution == "rich"
    mine.file.verify()


def test_the_planted_faults_are_what_they_are_said_to_be(planted: Planted) -> None:
    found = {}
    for entry in planted.entries:
        try:
            entry.file.verify()
        except (FileChanged, FileMissing) as error:
            found[entry.file.path] = type(error).__name__
    assert found == {**planted.expected, planted.late: "FileMissing"}


def test_the_late_file_is_as_recorded_once_it_arrives(planted: Planted) -> None:
    planted.arrive()
    next(entry for entry in planted.entries if entry.file.path == planted.late).file.verify()


async def test_a_worker_that_ends_by_itself_is_a_failure_that_says_why(tmp_path: Path) -> None:
    crew = Crew(Plan(f"sqlite:///{tmp_path}/a.db?nonsense=1", "audit"), tmp_path)
    starting = asyncio.create_task(crew.start(1))
    try:
        with pytest.raises(
            CommandFailed, match=r"worker 1 \(process \d+\) ended by itself with exit code 1: .*nonsense"
        ):
            await asyncio.wait_for(crew.failed, 30)
    finally:
        starting.cancel()
        await crew.kill()


# --- the verdict


def _counted(audit: Audit) -> None:
    """As if all had gone well."""
    names = {entry.file.path: message_id for message_id, entry in audit.messages.items()}
    for path, kind in audit.planted.expected.items():
        message_id = names[path]
        audit.tally.dead[message_id] = Message(
            "audit-dlq", b"", headers={"error-type": f"somewhere.{kind}"}, id=message_id
        )
    for message_id in audit.messages.keys() - audit.tally.dead.keys():
        audit.tally.verified[message_id] = audit.tally.attempts[message_id] = 1
    late = names[audit.planted.late]
    audit.tally.attempts[late] = 2
    audit.tally.failed[late] = "FileMissing"
    audit.in_hand = next(message_id for message_id in audit.tally.verified if message_id != late)
    audit.tally.verified[audit.in_hand] = 2
    audit.lag = 0
    audit.kept = set(audit.tally.dead)


@pytest.fixture
async def audit(planted: Planted, tmp_path: Path) -> Audit:
    plan = Plan("memory://", "audit")
    audit = Audit(connect(plan.url), plan, inventory()[:20], planted, tmp_path)
    _counted(audit)
    return audit


async def test_counts_that_add_up_are_accepted(audit: Audit) -> None:
    assert [check.name for check in checks(audit) if not check.ok] == []


async def test_a_lost_message_is_noticed(audit: Audit) -> None:
    del audit.tally.verified[next(iter(audit.tally.verified.keys() - {audit.in_hand}))]
    assert "nothing was lost" in [check.name for check in checks(audit) if not check.ok]


async def test_a_wrong_reason_is_noticed(audit: Audit) -> None:
    message_id, message = next(iter(audit.tally.dead.items()))
    audit.tally.dead[message_id] = message.replace(headers={"error-type": "builtins.ValueError"})
    assert [check.name for check in checks(audit) if not check.ok] == ["every planted fault was found"]


async def test_a_message_that_did_not_come_again_is_noticed(audit: Audit) -> None:
    audit.tally.verified[audit.in_hand] = 1
    assert [check.name for check in checks(audit) if not check.ok] == [
        "what the killed worker held came again"
    ]


async def test_a_dead_letter_that_is_gone_is_noticed(audit: Audit) -> None:
    audit.kept.pop()
    assert [check.name for check in checks(audit) if not check.ok] == ["every dead letter is kept"]


async def test_a_lag_is_noticed_and_an_unknown_one_is_none(audit: Audit) -> None:
    audit.lag = 1
    assert [check.name for check in checks(audit) if not check.ok] == ["everything is acknowledged"]
    audit.lag = None
    assert all(check.ok for check in checks(audit))


# --- the whole


@posix
def test_the_demo_kills_a_worker_and_loses_nothing(program: Any, tmp_path: Path) -> None:
    running = program(
        "demo", "--limit", "60", "--workers", "2", env={"TMPDIR": str(tmp_path), "COLUMNS": "120"}
    )
    code, out, err = running.end()
    assert (code, err) == (0, "")
    assert "66 published = 61 verified + 5 dead letters" in out
    assert re.search(r"worker \d was killed with SIGKILL in the middle of a message", out)
    assert "5 of 5: 3 FileChanged, 2 FileMissing" in out
    assert "✗" not in out


@posix
def test_the_commands_that_it_suggests_work(program: Any, tmp_path: Path) -> None:
    _, out, _ = program("demo", "--limit", "5", "--workers", "1", env={"TMPDIR": str(tmp_path)}).end()
    commands = [
        line for line in out.partition("Now try")[2].splitlines()[1:] if not line.strip().startswith("#")
    ]
    answers = []
    for command in commands:
        arguments = shlex.split(command)
        arguments = (
            arguments[[*arguments, "dlq"].index("dlq") :]
            if "dlq" in arguments
            else arguments[arguments.index("lag") :]
        )
        answers.append(program(*arguments, env={"COLUMNS": "200"}).end())
    assert [code for code, _, _ in answers] == [0, 0, 0]
    assert answers[0][1].count("FileChanged") == 3
    assert answers[1][1] == "replayed 2 dead letters to where they came from\n"
    assert answers[2][1] == "2\n"


@posix
def test_nothing_is_kept_where_that_is_asked(program: Any, tmp_path: Path) -> None:
    running = program("demo", "--limit", "5", "--workers", "1", "--no-keep", env={"TMPDIR": str(tmp_path)})
    assert running.end()[0] == 0
    assert list(tmp_path.iterdir()) == []


@posix
def test_an_interrupt_leaves_no_worker_behind(program: Any, tmp_path: Path) -> None:
    running = program("demo", env={"TMPDIR": str(tmp_path)})
    while "share the group" not in (line := running.line()):
        assert line, running.end()
    workers = _children(running.process.pid)
    running.interrupt()
    code, _, err = running.end()
    assert (code, err) == (128 + signal.SIGINT, "")
    assert [pid for pid in workers if _exists(pid)] == []


@posix
def test_a_worker_that_somebody_else_kills_is_a_failure(program: Any, tmp_path: Path) -> None:
    running = program("demo", env={"TMPDIR": str(tmp_path)})
    while "share the group" not in (line := running.line()):
        assert line, running.end()
    workers = _children(running.process.pid)
    os.kill(workers[0], signal.SIGKILL)
    code, _, err = running.end()
    assert code == 1
    assert "ended by itself with exit code -9" in err
    assert [pid for pid in workers if _exists(pid)] == []


def test_a_broker_in_memory_cannot_serve_worker_processes(cli: Any) -> None:
    result = cli("demo", "--broker", "memory://")
    assert result.exit_code == 2
    assert "workers are processes" in result.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("scheme", BUILT_IN)
def test_make_demo_installs_what_the_broker_of_its_url_needs(scheme: str) -> None:
    said = subprocess.run(
        ["make", "-n", "demo", f"BROKER={scheme}://there", "VENV=nowhere"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert f'-e ".[{BUILT_IN[scheme].extra or "cli"}]"' in said.stdout


def _children(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(child) for child in listed.stdout.split()]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("url", "used"),
    [
        ("sqlite:///a.db", "sqlite:///a.db?lease=2"),
        ("sqlite:///a.db?lease=9", "sqlite:///a.db?lease=9"),
        ("kafka://a:9092?partitions=3", "kafka://a:9092?partitions=3&session_timeout=6"),
        ("nats://a:4222", "nats://a:4222"),
    ],
)
def test_a_killed_worker_is_missed_soon_unless_the_url_says_when(url: str, used: str) -> None:
    assert impatient(url) == used
