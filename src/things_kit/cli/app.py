"""The commands of `things-kit`."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from things_kit.cli import dlq
from things_kit.cli.bench import bench
from things_kit.cli.bridge import bridge
from things_kit.cli.config import config
from things_kit.cli.declare import declare
from things_kit.cli.demo.command import demo
from things_kit.cli.doctor import doctor
from things_kit.cli.lag import lag
from things_kit.cli.new.command import new
from things_kit.cli.printing import safe, say, without_login
from things_kit.cli.publish import publish
from things_kit.cli.run import run
from things_kit.cli.tail import tail
from things_kit.cli.topics import topics


class Commands(TyperGroup):
    """The commands; a complaint about wrong use repeats no password and no escape sequence."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            # Typer's exceptions for wrong use have had several homes; this is what they have in common.
            message = getattr(error, "message", None)
            if isinstance(message, str):
                error.message = safe(without_login(message))  # type: ignore[attr-defined]
            raise


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


app.command()(demo)
app.command()(publish)
app.command()(tail)
app.command()(topics)
app.command()(lag)
app.command()(new)
app.command()(declare)
app.command()(bridge)
app.command()(config)
app.command()(run)
app.command()(doctor)
app.command()(bench)
app.add_typer(dlq.app, name="dlq")
