"""How our commands differ from Typer's: in what their help shows, and in what a complaint repeats."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

from things_kit.cli.printing import safe, without_login


def _plain(parameters: list[Any]) -> list[Any]:
    """The parameters; those that take no value name no type of it in the help."""
    for each in parameters:
        if getattr(each, "is_flag", False) and each.metavar is None:
            each.metavar = ""
    return parameters


class Command(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """What it takes."""
        return _plain(super().get_params(ctx))


class Group(TyperGroup):
    """Commands under a name."""

    def get_params(self, ctx: Any) -> list[Any]:
        """What it takes."""
        return _plain(super().get_params(ctx))


class Commands(Group):
    """All commands; a complaint about wrong use repeats no password and no escape sequence."""

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
