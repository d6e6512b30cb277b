"""`things-kit run`: an app in one process, in several, and again whenever a file changes."""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.cli.conftest import Cli, Program

if sys.platform == "win32":
    pytest.skip("signals of another kind", allow_module_level=True)

MAIN = """
import os
from things_kit import App, Hook, Lifecycle, invoke

def speak(lifecycle: Lifecycle) -> None:
    lifecycle.append(Hook(
        on_start=lambda: print(f"up {os.getpid()}\\n", end="", flush=True), on_stop=lambda: print(f"down {os.getpid()}\\n", end="", flush=True)
    ))

app = App(invoke(speak))
"""

Start = Callable[..., Program]


@pytest.fixture
def run(program: Start, tmp_path: Path) -> Start:
    (tmp_path / "some_app.py").write_text(MAIN)
    return lambda *arguments: program("run", *arguments, cwd=tmp_path, env={"PYTHONUNBUFFERED": "1"})


def pid(line: str) -> int:
    found = re.fullmatch(r"up (\d+)\n", line)
    assert found, line
    return int(found[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_app_runs_until_a_signal(run: Start, number: int) -> None:
    running = run("some_app:app")
    own = pid(running.line())
    assert own == running.process.pid
    running.process.send_signal(number)
    assert running.end() == (0, f"down {own}\n", "")


def test_an_app_that_is_not_there_is_wrong_use(run: Start) -> None:
    for arguments in (["some_app:nothing"], ["some_app:nothing", "--workers", "2"]):
        code, _, err = run(*arguments).end()
        assert code == 2
        assert "some_app has no App named 'nothing'" in err


OTHERS = """
from things_kit import App

def make(): return App()
async def later(): ...
class NotAnApp: ...
number = 5
application = App()
"""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["some:NotAnApp"], "some:NotAnApp is a class, no App; a function that makes one needs --factory"),
        (["some:make"], "some:make is a function, no App; a function that makes one needs --factory"),
        (["some:number"], "some:number is an object of type int, no App; the App there is 'application'"),
        (["some:app"], "some has no App named 'app'; the App there is 'application'"),
        (["some:NotAnApp", "--factory"], "some:NotAnApp() returned an object of type NotAnApp, no App"),
        (["some:number", "--factory"], "some:number is no function that makes an App: leave --factory out"),
        (["some:later", "--factory"], "some:later is async; a function that makes an App is a plain one"),
        (["nowhere:app"], "there is no module 'nowhere'"),
    ],
)
def test_what_is_no_app_is_said(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "some.py").write_text(OTHERS)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "some", raising=False)
    result = cli("run", *arguments, "--app-dir", str(tmp_path))
    assert result.exit_code == 2
    assert sentence in result.stderr


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("import nowhere", 1, "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("def (", 1, "cannot be imported: SyntaxError: invalid syntax"),
        ("1 / 0", 1, "cannot be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_module_raises_is_shown_without_what_is_not_its_own(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, code: int, said: str
) -> None:
    result = _imported(cli, tmp_path, monkeypatch, source)
    assert result.exit_code == code
    assert said in result.stderr.splitlines()[-1]
    assert re.findall(r'File "(.*?)"', result.stderr) == [str(tmp_path / "some_broken.py")]


def test_a_mistake_that_is_ours_to_explain_is_one_sentence(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from things_kit import App\napp = App()\n@app.on\nasync def bill(order): ...\n"
    result = _imported(cli, tmp_path, monkeypatch, source)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert result.stderr.startswith("things-kit: some_broken: on takes a topic, and was given bill: write ")
    assert result.stderr.endswith("(some_broken.py:3)\n")


def _imported(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> Result:
    (folder / "some_broken.py").write_text(source)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "some_broken", raising=False)
    return cli("run", "some_broken:app", "--app-dir", str(folder))


def test_a_factory_makes_the_app_and_the_level_is_what_is_said(program: Start, tmp_path: Path) -> None:
    (tmp_path / "some_app.py").write_text(MAIN + "\ndef make():\n    return app\n")
    running = program(
        "run", "some_app:make", "--factory", "--app-dir", str(tmp_path), "--log-level", "info",
        env={"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    pid(running.line())
    assert running.line("stderr").endswith("INFO things_kit.app: ready\n")
    running.process.send_signal(signal.SIGTERM)
    code, _, err = running.end()
    assert (code, err.splitlines()[-1].endswith("INFO things_kit.app: stopped")) == (0, True)


LOOP = """
import asyncio
from things_kit import App, invoke

def end(app: App) -> None:
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    print(f"{loop}\\n", end="", flush=True)  # in one piece, as several processes write to one pipe
    app.shutdown()

app = App(invoke(end))
"""


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_app_runs_on_the_loop_that_is_asked_for(
    program: Start, tmp_path: Path, loop: str, workers: str
) -> None:
    pytest.importorskip("uvloop")
    (tmp_path / "some_app.py").write_text(LOOP)
    running = program("run", "some_app:app", "--loop", loop, "--workers", workers, cwd=tmp_path)
    code, out, _ = running.end()
    assert (code, out.split()) == (0, [loop] * int(workers))


def test_a_loop_that_is_missing_is_said(run: Start, tmp_path: Path) -> None:
    (tmp_path / "some_app.py").write_text("import sys; sys.modules['uvloop'] = None\n" + MAIN)
    code, out, err = run("some_app:app", "--loop", "uvloop").end()
    assert (code, out) == (2, "")
    assert err.endswith('needs uvloop: pip install "things-kit[uvloop]"\n')


def test_without_the_extra_it_says_what_to_install(run: Start, tmp_path: Path) -> None:
    (tmp_path / "some_app.py").write_text(
        "import sys; sys.modules['yaml'] = None\nimport things_kit.modules.config"
    )
    code, _, err = run("some_app:app").end()
    assert code == 1
    assert 'things-kit: this needs yaml: pip install "things-kit[app]"' in err


def test_workers_are_started_again_and_drained(run: Start) -> None:
    running = run("some_app:app", "--workers", "2")
    first, second = pid(running.line()), pid(running.line())
    os.kill(first, signal.SIGKILL)
    third = pid(running.line())
    assert third not in {first, second}
    running.process.send_signal(signal.SIGTERM)
    code, out, err = running.end()
    assert code == 0
    assert sorted(out.splitlines()) == sorted([f"down {second}", f"down {third}"])
    assert "ended with code -9; again in 0.5 s" in err


def test_each_worker_knows_its_number_and_keeps_it_when_it_is_started_again(
    run: Start, tmp_path: Path
) -> None:
    main = MAIN.replace("lifecycle: Lifecycle", "lifecycle: Lifecycle, app: App").replace(
        "up {", "up {app.worker}:{"
    )
    (tmp_path / "some_app.py").write_text(
        main.replace("app = App(", "assert os.environ['THINGS_KIT_WORKER']\napp = App(")
    )
    running = run("some_app:app", "--workers", "2")
    pids = dict(line.removeprefix("up ").strip().split(":") for line in (running.line(), running.line()))
    assert sorted(pids) == ["1", "2"]
    os.kill(int(pids["2"]), signal.SIGKILL)
    assert running.line().startswith("up 2:")
    running.process.send_signal(signal.SIGTERM)
    assert running.end()[0] == 0


def test_workers_drain_and_end_when_their_supervisor_is_killed(run: Start) -> None:
    running = run("some_app:app", "--workers", "2")
    first, second = pid(running.line()), pid(running.line())
    running.process.kill()
    _, out, _ = running.end()  # they hold its output too, so this waits for both
    assert sorted(out.splitlines()) == sorted([f"down {first}", f"down {second}"])


def test_a_change_of_a_file_starts_it_again(run: Start, tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    running = run("some_app:app", "--reload")
    first = pid(running.line())
    (tmp_path / "some_app.py").write_text(MAIN + "\n# changed\n")
    assert running.line() == f"down {first}\n"
    second = pid(running.line())
    assert second != first
    running.process.send_signal(signal.SIGINT)
    code, out, _ = running.end()
    assert (code, out) == (0, f"down {second}\n")
