"""`things-kit run`: an app, in one process or in several."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from things_kit.cli.imported import importing
from things_kit.cli.logs import show_no_warnings
from things_kit.cli.needs import application_kit
from things_kit.cli.printing import complain
from things_kit.cli.running import WRONG_USE, CommandFailed


class Level(StrEnum):
    """How much is logged."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"


class Loop(StrEnum):
    """Which event loop an app runs on."""

    AUTO = "auto"
    ASYNCIO = "asyncio"
    UVLOOP = "uvloop"


def run(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:APP", help="The app, such as shop.main:app", show_default=False)
    ],
    *,
    workers: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Processes; each is started again when it dies, and drained at stop."
        ),
    ] = 1,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again whenever a file below this folder changes.")
    ] = False,
    factory: Annotated[
        bool, typer.Option("--factory", help="MODULE:APP is a function without arguments that makes the app.")
    ] = False,
    log_level: Annotated[
        Level | None, typer.Option(case_sensitive=False, help="In place of the configuration's.")
    ] = None,
    loop: Annotated[
        Loop, typer.Option(help="The event loop; auto is that of uvloop where it is installed.")
    ] = Loop.AUTO,
    app_dir: Annotated[
        Path, typer.Option(file_okay=False, exists=True, metavar="FOLDER", help="Where MODULE is looked for.")
    ] = Path(),
) -> None:
    """Run an app until SIGINT or SIGTERM, and drain it; a second signal does not wait for that."""
    if log_level is not None:
        os.environ["LOGGING_LEVEL"] = log_level.value
    if workers == 1 and not reload:
        _run_here(target, log_level, loop, factory=factory, folder=app_dir)
        return
    command = [
        sys.executable,
        "-m",
        "things_kit.cli",
        "run",
        target,
        "--app-dir",
        str(app_dir),
        "--loop",
        loop.value,
    ]
    command += ["--factory"] if factory else []
    command += ["--log-level", log_level.value] if log_level is not None else []
    code = asyncio.run(_supervise(command, workers, reload=reload))
    raise typer.Exit(code)


def _run_here(target: str, log_level: Level | None, loop: Loop, *, factory: bool, folder: Path) -> None:
    from things_kit.app.target import TargetError, load_app  # noqa: PLC0415 - other commands need none of it

    try:
        with importing(target.partition(":")[0], through=TargetError), application_kit():
            app = load_app(target, factory=factory, folder=folder)
    except TargetError as error:
        complain(str(error))
        raise typer.Exit(WRONG_USE) from None
    except CommandFailed as error:
        complain(str(error))
        raise typer.Exit(error.code) from None
    show_no_warnings()  # how an app logs is its own affair
    if log_level is not None and not any(_is_logging(placed.part) for placed in app):
        logging.basicConfig(level=log_level.value, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        app.run(loop=loop.value)
    except ModuleNotFoundError as error:
        if error.name != "uvloop":
            raise
        complain(error.msg)
        raise typer.Exit(WRONG_USE) from None


def _is_logging(part: Any) -> bool:
    """Whether it is the section by which the module `logging` sets itself up."""
    return getattr(part, "name", None) == "logging"


async def _supervise(command: list[str], workers: int, *, reload: bool) -> int:
    from things_kit.app.supervisor import Supervisor  # noqa: PLC0415

    return await Supervisor(command, workers, _changes() if reload else None).run()


def _changes() -> AsyncIterator[Any]:
    try:
        from watchfiles import DefaultFilter, awatch  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        complain('--reload needs watchfiles: pip install "things-kit[reload]"')
        raise typer.Exit(1) from None

    class Sources(DefaultFilter):
        """Code and configuration."""

        def __call__(self, change: Any, path: str) -> bool:
            return path.endswith((".py", ".yaml", ".yml", ".toml")) and super().__call__(change, path)

    return awatch(Path.cwd(), watch_filter=Sources(), raise_interrupt=False)
