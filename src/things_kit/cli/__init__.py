"""The command line: `things-kit`."""

import sys
from typing import Final

NEEDED: Final = frozenset({"typer", "rich", "jmespath"})
"""What the extra `cli` installs; the library itself does without."""


def main() -> None:
    """Run the command line; the console script `things-kit`."""
    try:
        from things_kit.cli.app import app  # noqa: PLC0415 - the extra may be missing, and that deserves a sentence
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in NEEDED:
            raise
        sys.stderr.write(f'things-kit: the command line needs {missing}: pip install "things-kit[cli]"\n')
        raise SystemExit(1) from None
    app(prog_name="things-kit")
