"""The command line: `things-kit`."""

import sys
from io import TextIOWrapper
from typing import Final

NEEDED: Final = frozenset({"typer", "rich", "jmespath"})
"""What the extra `cli` installs; the library itself does without."""


def main() -> None:
    """Run the command line; the console script `things-kit`."""
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
