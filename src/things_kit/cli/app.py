"""The commands of `things-kit`."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from things_kit.cli import contract, dlq, schedule, schema
from things_kit.cli.asyncapi import asyncapi
from things_kit.cli.bench import bench
from things_kit.cli.bridge import bridge
from things_kit.cli.commands import Command, Commands
from things_kit.cli.config import config
from things_kit.cli.declare import declare
from things_kit.cli.demo.command import demo
from things_kit.cli.doctor import doctor
from things_kit.cli.lag import lag
from things_kit.cli.new.command import new
from things_kit.cli.printing import say
from things_kit.cli.publish import publish
from things_kit.cli.run import run
from things_kit.cli.tail import tail
from things_kit.cli.topics import topics

# A traceback with local variables would show URLs, and passwords with them.
app = typer.Typer(
    cls=Commands,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        try:
            say(f"things-kit {version('things-kit')}")
        except PackageNotFoundError:
            say("things-kit, not installed")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """One messaging contract for every broker: publish, watch and repair from the command line."""


MESSAGES, TOPICS, APPS, HELP = (
    "Messages",
    "Topics and groups",
    "Applications",
    "Looking for trouble, trying out",
)

for command, panel in (
    (publish, MESSAGES), (tail, MESSAGES), (bridge, MESSAGES),
    (topics, TOPICS), (lag, TOPICS), (declare, TOPICS),
    (run, APPS), (new, APPS), (config, APPS), (asyncapi, APPS),
    (doctor, HELP), (bench, HELP), (demo, HELP),
):  # fmt: skip
    app.command(cls=Command, rich_help_panel=panel)(command)
app.add_typer(dlq.app, name="dlq", rich_help_panel=MESSAGES)
app.add_typer(schedule.app, name="schedule", rich_help_panel=MESSAGES)
app.add_typer(contract.app, name="contract", rich_help_panel=APPS)
app.add_typer(schema.app, name="schema", rich_help_panel=APPS)
