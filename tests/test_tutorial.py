"""The tutorial and the front page are followed step by step: files are written, commands run, and say what the page shows."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorial asks with curl")
DOCS = Path(__file__).parent.parent / "docs"
STEP = re.compile(r'^```(\w+)(?: title="(\S+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LOOKING = re.compile(r"things-kit (topics|dlq list|doctor)|curl")
"""Commands that change nothing: they are asked again until what was begun before them is done."""
PATIENCE = 60.0


class Reader:
    """Follows the page in a folder of its own, with two terminals, or with one: then Ctrl-C comes before the next change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        scripts = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "200",
        }
        self.service: subprocess.Popen[bytes] | None = None
        self.one_terminal = False

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text.replace("8081", self.port))

    def run(self, command: str, shown: list[str]) -> None:
        command = command.replace("8081", self.port)
        if command.startswith("things-kit run"):
            self.stop()
            self.service = subprocess.Popen(shlex.split(command), cwd=self.folder, env=self.environment)
            if "ops.module" in (self.folder / "shop.py").read_text():
                self.ask(f"curl -sf localhost:{self.port}/readyz", [])
        elif LOOKING.search(command):
            self.ask(command, shown)
        else:
            if self.one_terminal:
                self.stop()
            said = self.say(command)
            assert fits(said, shown), f"$ {command}\n{said}"
            assert said is not None
            assert "Warning" not in said, said

    def ask(self, command: str, shown: list[str]) -> None:
        until = time.monotonic() + PATIENCE
        while not fits(said := self.say(command), shown):
            assert time.monotonic() < until, f"$ {command}\n{said}"
            time.sleep(0.1)

    def say(self, command: str) -> str | None:
        """What a command prints; None if it fails."""
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr if done.returncode == 0 else None

    def stop(self) -> None:
        if self.service is not None:
            self.service.send_signal(signal.SIGINT)
            assert self.service.wait(PATIENCE) == 0
            self.service = None


def fits(said: str | None, shown: list[str]) -> bool:
    """Whether a command said this, in this order.

    A … is whatever is there; ids, times and the space between columns are each time others.
    """
    if said is None:
        return False
    pattern = re.escape(" ".join("\n".join(shown).split()))
    for own in (r"[0-9a-f]{20}…", r"[0-9a-f]{24}\\-\d+", r"\d{4}\\-\d\d\\-\d\d\\ \d\d:\d\d:\d\d", "…"):
        pattern = re.sub(own, ".*", pattern)
    return re.search(pattern.replace(r"\ ", " ?"), " ".join(said.split())) is not None


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    if reader.service is not None:
        reader.service.kill()
        reader.service.wait()


@pytest.mark.timeout(300)  # some fifty programs, one after another
@pytest.mark.parametrize("page", ["tutorial.md", "index.md"])
def test_who_follows_a_page_sees_what_it_shows(reader: Reader, page: str) -> None:
    reader.one_terminal = page == "index.md"
    steps = STEP.findall((DOCS / page).read_text(encoding="utf-8"))
    for kind, file, text in steps:
        if file:
            reader.write(file, text)
        elif kind == "console":
            for block in text.removeprefix("$ ").split("\n$ "):
                command, *shown = block.strip().splitlines()
                reader.run(command, shown)
    reader.stop()
