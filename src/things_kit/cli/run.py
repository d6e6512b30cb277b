"""`things-kit run`: an app, in one process or in several."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer

from things_kit.cli.logs import show_no_warnings
from things_kit.cli.needs import application_kit
from things_kit.cli.printing import complain
from things_kit.cli.running import WRONG_USE, CommandFailed


def run(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:APP", help="The app, such as shop.main:app", show_default=False)
    ],
    *,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes; each is started again when it dies, and drained at stop.")
    ] = 1,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again whenever a file below this folder changes.")
    ] = False,
) -> None:
    """Run an app until SIGINT or SIGTERM, and drain it; a second signal does not wait for that."""
    if workers == 1 and not reload:
        _run_here(target)
        return
    command = [sys.executable, "-m", "things_kit.cli", "run", target]
    code = asyncio.run(_supervise(command, workers, reload=reload))
    raise typer.Exit(code)


def _run_here(target: str) -> None:
    from things_kit.app.target import TargetError, load_app  # noqa: PLC0415 - other commands need none of it

    try:
        with application_kit():
            app = load_app(target)
    except TargetError as error:
        complain(str(error))
        raise typer.Exit(WRONG_USE) from None
    except CommandFailed as error:
        complain(str(error))
        raise typer.Exit(error.code) from None
    show_no_warnings()  # how an app logs is its own affair
    app.run()


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
