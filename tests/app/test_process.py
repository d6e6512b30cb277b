"""An app as a process: signals, exit codes, what is said on the way out."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("signals of another kind", allow_module_level=True)

PROLOGUE = """
import asyncio, time
from things_kit import App, Hook, Lifecycle, invoke, provide

def say(text):
    print(text, flush=True)

def hooks(*given):
    def add(lifecycle: Lifecycle) -> None:
        for hook in given:
            lifecycle.append(hook)
    return invoke(add)

async def never():
    await asyncio.Event().wait()

def refuse():
    raise RuntimeError("refused, for a reason")
"""


class Program:
    """An app in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.process: subprocess.Popen[str] | None = None

    def start(self, code: str, *before: str, prologue: str = PROLOGUE) -> subprocess.Popen[str]:
        file = self._folder / "main.py"
        file.write_text(prologue + code)
        self.process = subprocess.Popen(
            [*before, sys.executable, str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._folder,
        )
        return self.process

    def said(self, line: str) -> None:
        """Wait for a line of its output."""
        assert self.process is not None
        assert self.process.stdout is not None
        seen = []
        for seen_line in self.process.stdout:
            seen.append(seen_line.rstrip())
            if seen_line.rstrip() == line:
                return
        pytest.fail(f"it ended without saying {line!r}, but {seen}: {self.ended()}")

    def ended(self) -> tuple[int, str, str]:
        """Wait for its end: its code, and the rest of what it said."""
        assert self.process is not None
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    running = Program(tmp_path)
    yield running
    if running.process is not None:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_app_and_it_ends_well(program: Program, number: int) -> None:
    process = program.start("""
App(hooks(Hook(on_start=lambda: say("up"), on_stop=lambda: say("down")))).run()
say("after")
""")
    program.said("up")
    process.send_signal(number)
    code, out, err = program.ended()
    assert (code, out, err) == (0, "down\nafter\n", "")


def test_a_signal_during_the_start_unwinds_it(program: Program) -> None:
    process = program.start("""
async def hang():
    say("starting")
    await never()
App(hooks(Hook(on_stop=lambda: say("down")), Hook(on_start=hang, on_stop=lambda: say("wrong")))).run()
""")
    program.said("starting")
    process.send_signal(signal.SIGTERM)
    assert program.ended() == (0, "down\n", "")


@pytest.mark.parametrize("blocks", ["time.sleep(60)", "await never()"])
def test_a_second_signal_ends_it_at_once(program: Program, blocks: str) -> None:
    process = program.start(f"""
async def hang():
    say("stopping")
    {blocks}
App(hooks(Hook(on_start=lambda: say("up"), on_stop=hang))).run()
""")
    program.said("up")
    process.send_signal(signal.SIGTERM)
    program.said("stopping")
    process.send_signal(signal.SIGTERM)
    assert program.ended()[0] == -signal.SIGTERM


def test_a_failed_start_says_why_and_ends_badly(program: Program) -> None:
    program.start("""
App(hooks(Hook(on_stop=lambda: say("down")), Hook(on_start=refuse))).run()
""")
    code, out, err = program.ended()
    assert (code, out) == (1, "down\n")
    assert "the app did not start: refused, for a reason" in err


def test_wiring_mistakes_are_said_without_a_traceback(program: Program) -> None:
    program.start("""
class Database: ...
def use(database: Database, other: Lifecycle): ...
App(invoke(use)).run()
""")
    code, _, err = program.ended()
    assert code == 1
    assert "nothing provides Database, which use (main.py:" in err
    assert "Traceback" not in err


def test_what_breaks_while_it_runs_is_said_and_it_ends_badly(program: Program) -> None:
    program.start("""
async def break_():
    refuse()
App(hooks(Hook(on_stop=lambda: say("down"), watch=break_))).run()
""")
    code, out, err = program.ended()
    assert (code, out) == (1, "down\n")
    assert "the app broke: refused, for a reason" in err


def test_what_fails_while_it_stops_is_said_and_it_ends_badly(program: Program) -> None:
    process = program.start("""
App(hooks(Hook(on_stop=lambda: say("down")), Hook(on_start=lambda: say("up"), on_stop=refuse))).run()
""")
    program.said("up")
    process.send_signal(signal.SIGTERM)
    code, out, err = program.ended()
    assert (code, out) == (1, "down\n")
    assert "refused, for a reason" in err


def test_what_fails_while_an_interrupted_start_is_unwound_is_said_and_it_ends_badly(program: Program) -> None:
    process = program.start("""
async def hang():
    say("starting")
    await never()
App(hooks(Hook(on_stop=refuse), Hook(on_start=hang))).run()
""")
    program.said("starting")
    process.send_signal(signal.SIGTERM)
    code, _, err = program.ended()
    assert code == 1
    assert "refused, for a reason" in err


def test_uvloop_is_used_where_it_is_installed(program: Program) -> None:
    pytest.importorskip("uvloop")
    program.start("""
def end(app: App):
    say(type(asyncio.get_running_loop()).__module__)
    app.shutdown()
App(invoke(end)).run()
""")
    assert program.ended() == (0, "uvloop\n", "")


def test_it_works_without_uvloop(program: Program) -> None:
    process = program.start("""
import sys
sys.modules["uvloop"] = None
App(hooks(Hook(on_start=lambda: say("up"), on_stop=lambda: say("down")))).run()
""")
    program.said("up")
    process.send_signal(signal.SIGTERM)
    assert program.ended() == (0, "down\n", "")


def test_without_the_extra_it_says_what_to_install(program: Program) -> None:
    program.start(
        """
import sys
sys.modules["pydantic"] = None
from things_kit.modules import config
""",
        prologue="",
    )
    code, _, err = program.ended()
    assert code == 1
    assert 'pip install "things-kit[app]"' in err


def may_unshare() -> bool:
    unshare = shutil.which("unshare")
    return (
        bool(unshare)
        and not subprocess.run(
            [str(unshare), "--pid", "--fork", "true"], capture_output=True, check=False
        ).returncode
    )


@pytest.mark.skipif(not may_unshare(), reason="needs the right to make a process namespace, as root has")
def test_process_1_of_a_container_stops_at_the_first_signal_and_ends_at_the_second(program: Program) -> None:
    process = program.start(
        """
import os
assert os.getpid() == 1
App(hooks(Hook(on_start=lambda: say("up"), on_stop=lambda: (say("stopping"), time.sleep(60))))).run()
""",
        "unshare", "--pid", "--fork",
    )  # fmt: skip
    program.said("up")
    inside = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill(inside, signal.SIGTERM)
    program.said("stopping")
    os.kill(inside, signal.SIGTERM)
    assert program.ended()[0] == 128 + signal.SIGTERM
