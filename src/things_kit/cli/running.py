"""How a command runs: what interrupts it, and how its failures become a sentence and an exit code."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import typer

from things_kit.cli.printing import OutputClosed, complain, forget_output
from things_kit.messaging.errors import ConfigError, ThingsKitError

T = TypeVar("T")

FAILED: Final = 1
WRONG_USE: Final = 2
INTERRUPTED: Final = 128 + signal.SIGINT


class CommandFailed(Exception):
    """A command's own failure: a sentence, or none where everything has been said, and an exit code."""

    def __init__(self, sentence: str = "", code: int = FAILED) -> None:
        super().__init__(sentence)
        self.code = code


def run(command: Callable[[], Awaitable[T]], *, interrupted: int = INTERRUPTED) -> T:
    """Run a command to its end.

    SIGINT and SIGTERM cancel it, and it then ends with the code `interrupted`; a second SIGINT does not wait
    for what it still cleans up.

    Raises:
        typer.Exit: It failed or was interrupted; what there is to say has been said.
    """
    try:
        return asyncio.run(_cancellable(command))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(interrupted) from None
    except OutputClosed:
        forget_output()
        raise typer.Exit(0) from None
    except (ThingsKitError, CommandFailed) as error:
        if str(error):
            complain(str(error))
        raise typer.Exit(_code(error)) from None


async def _cancellable(command: Callable[[], Awaitable[T]]) -> T:
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    # Windows has no signal handlers in its loops, and only the main thread may have them anywhere.
    with suppress(NotImplementedError, RuntimeError, ValueError):
        if task is not None:
            loop.add_signal_handler(signal.SIGTERM, task.cancel)
    return await command()


def _code(error: Exception) -> int:
    if isinstance(error, CommandFailed):
        return error.code
    return WRONG_USE if isinstance(error, ConfigError) else FAILED
