"""What becomes of an error that the user's own module raises while it is imported."""

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

import things_kit
from things_kit.cli.printing import safe
from things_kit.cli.running import WRONG_USE, CommandFailed

SKIPPED: Final = (
    "<frozen importlib",
    *(str(Path(module).parent) for module in (importlib.__file__, things_kit.__file__)),
)
"""How the files begin of frames that are the import system's, or ours."""


@contextmanager
def importing(module: str, *, through: type[Exception] = CommandFailed) -> Iterator[None]:
    """Let what an import raises become a sentence, and before it, unless it is one of our errors, the user's part of its traceback.

    `through` is an error of the caller's, which passes.

    Raises:
        CommandFailed: The module raised something.
    """
    try:
        yield
    except (CommandFailed, through):
        raise
    except Exception as error:
        theirs = _theirs(error.__traceback__)
        if type(error).__module__.startswith("things_kit."):
            raise CommandFailed(f"{module}: {error}{_place(theirs)}", WRONG_USE) from error
        if isinstance(error, ModuleNotFoundError) and theirs is None:
            raise
        lines = "".join(traceback.format_exception(type(error), error, theirs))
        sys.stderr.write("".join(f"{safe(line)}\n" for line in lines.splitlines()))
        raise CommandFailed(f"{module} cannot be imported: {type(error).__name__}: {error}") from error


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame on that is neither ours nor the import system's."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(SKIPPED):
        trace = trace.tb_next
    return trace


def _place(trace: TracebackType | None) -> str:
    """Where in the user's module it was, as the end of a sentence."""
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace is not None else ""
