"""`things-kit new`."""

from pathlib import Path
from typing import Annotated

import typer

from things_kit.cli.new.places import BROKERS
from things_kit.cli.new.project import package_of, write
from things_kit.cli.printing import complain, safe, say
from things_kit.cli.running import CommandFailed


def new(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="NAME", help="The project, and the folder to make for it.", show_default=False
        ),
    ],
    *,
    broker: Annotated[str, typer.Option(help=f"Its broker: {', '.join(BROKERS)}.")] = "sqlite",
) -> None:
    """Write a small project that passes its own tests: an app, a handler, configuration, Dockerfile."""
    try:
        files = write(folder, broker)
    except CommandFailed as error:
        complain(str(error))
        raise typer.Exit(error.code) from None
    for file in files:
        say(safe(str(file)))
    say(safe(f'Now: cd {folder} && pip install -e ".[dev]" && pytest && python -m {package_of(folder)}'))
