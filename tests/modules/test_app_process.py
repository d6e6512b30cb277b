"""Apps with brokers as processes: drained by signals, ended by what breaks."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from things_kit import Message, connect

if sys.platform == "win32":
    pytest.skip("signals of another kind", allow_module_level=True)

COUNT = 1000
DRAIN = 20.0

WORKING = """
import asyncio, sqlite3
from things_kit import App, Message, invoke, provide
from things_kit.modules import config, logging, sqlite

class Ledger:
    def __init__(self) -> None:
        self.handled = sqlite3.connect("handled.db", isolation_level=None)
        self.handled.execute("CREATE TABLE IF NOT EXISTS handled (value)")

class Orders:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.count = 0

    async def handle(self, message: Message) -> None:
        await asyncio.sleep(0.002 if self.count < 100 else 0.1)  # once it is busy, some are left for long
        self.ledger.handled.execute("INSERT INTO handled VALUES (?)", (message.value,))
        self.count += 1
        if self.count == 100:
            print("busy", flush=True)

App(
    config.module, logging.module, sqlite.module, provide(Orders), provide(Ledger), invoke(sqlite.run_consumer)
).run()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(
        f"sqlite: {{path: events.db, topic: orders, group_id: g, concurrency: 8, drain_timeout: {DRAIN}}}\n"
    )
    return tmp_path


def start(folder: Path, code: str) -> subprocess.Popen[str]:
    (folder / "main.py").write_text(code)
    return subprocess.Popen(
        [sys.executable, "main.py"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


async def test_a_signal_under_load_loses_nothing_and_repeats_nothing(folder: Path) -> None:
    async with connect(f"sqlite:///{folder}/events.db") as broker:
        await broker.declare("orders", ["g"])
        await broker.producer().publish_batch(
            [Message("orders", b"%d" % number, key=b"%d" % (number % 50)) for number in range(COUNT)]
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            process = start(folder, WORKING)
            with process:
                assert process.stdout is not None
                assert process.stdout.readline() == "busy\n"
                begun = time.monotonic()
                process.send_signal(number)
                _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            assert time.monotonic() - begun < DRAIN
        with closing(sqlite3.connect(folder / "handled.db")) as file:
            handled = [int(value) for (value,) in file.execute("SELECT value FROM handled")]
        assert len(handled) == len(set(handled))
        assert 200 <= len(handled) < COUNT
        assert await broker.lag("orders", "g") == COUNT - len(handled)


def test_a_consumer_that_dies_ends_the_app_with_its_reason(folder: Path) -> None:
    process = start(
        folder,
        """
import asyncio
from things_kit import App, Broker, Hook, Lifecycle, Message, invoke, provide
from things_kit.modules import config, logging, memory, sqlite

class Orders:
    async def handle(self, message: Message) -> None: ...

def break_it(lifecycle: Lifecycle, app: App) -> None:
    async def cancel_a_worker() -> None:
        (worker,) = [task for task in asyncio.all_tasks() if "orders as g worker 0" in task.get_name()]
        worker.cancel()
    lifecycle.append(Hook(on_start=cancel_a_worker, on_stop=lambda: print("stopped", flush=True)))

App(config.module, logging.module, sqlite.module, provide(Orders), invoke(sqlite.run_consumer), invoke(break_it)).run()
""",
    )
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1, err
    assert out == "stopped\n"
    assert "a worker was cancelled from outside" in err
    assert "the app broke" in err


def test_the_start_imports_nothing_that_it_can_do_without_and_its_first_line_is_as_configured_all_the_same(
    folder: Path,
) -> None:
    process = start(
        folder,
        """
import sys
from things_kit import App, Hook, Lifecycle, Message, invoke, provide
from things_kit.modules import config, logging, sqlite

class Orders:
    async def handle(self, message: Message) -> None: ...

def look(lifecycle: Lifecycle, app: App) -> None:
    def up() -> None:
        unneeded = {"pydantic_settings", "difflib", "typer", "opentelemetry", "starlette"}
        print(sorted(unneeded & sys.modules.keys()), flush=True)
        import structlog
        structlog.get_logger("late").info("said", price=5)
        app.shutdown()
    lifecycle.append(Hook(on_start=up))

App(config.module, logging.module, sqlite.module, provide(Orders), invoke(sqlite.run_consumer), invoke(look)).run()
import structlog
print(structlog.is_configured(), type(structlog.__loader__).__name__)
""",
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.splitlines() == ["[]", "False SourceFileLoader"]
    (line,) = [line for line in map(json.loads, err.splitlines()) if line["logger"] == "late"]
    assert (line["event"], line["price"], line["logger"], line["level"]) == ("said", 5, "late", "info")


def test_without_structlog_the_start_says_what_to_install(folder: Path) -> None:
    process = start(
        folder,
        """
import sys
sys.modules["structlog"] = None
from things_kit import App
from things_kit.modules import config, logging
App(config.module, logging.module).run()
""",
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert 'pip install "things-kit[app]"' in err
