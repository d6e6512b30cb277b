"""The command line: `things-kit`."""

import os
import sys
from io import TextIOWrapper
from typing import Final

NEEDED: Final = frozenset({"typer", "rich", "jmespath"})
"""What the extra `cli` installs; the library itself does without."""


def main() -> None:
    """Run the command line; the console script `things-kit`."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # What this terminal has no characters for is shown as escapes; it is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    try:
        from things_kit.cli.app import app  # noqa: PLC0415 - the extra may be missing, and that deserves a sentence
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in NEEDED:
            raise
        sys.stderr.write(f'things-kit: the command line needs {missing}: pip install "things-kit[cli]"\n')
        raise SystemExit(1) from None
    from things_kit.cli.logs import show_warnings  # noqa: PLC0415 - as above

    show_warnings()
    app(prog_name="things-kit")


def open_standard_streams() -> None:
    """Point what the caller has closed nowhere: the next file that is opened, a database, would take its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: the stream's own
            setattr(sys, name, os.fdopen(nowhere, mode, encoding="utf-8", closefd=False))
