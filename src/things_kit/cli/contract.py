"""`things-kit contract diff`: what a change of contracts breaks."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from things_kit.cli.asyncapi import AppDir
from things_kit.cli.documents import document_in
from things_kit.cli.named import document_of
from things_kit.cli.needs import application_kit
from things_kit.cli.options import JsonFlag
from things_kit.cli.printing import as_json, safe, say
from things_kit.cli.running import FAILED, WRONG_USE, CommandFailed, run
from things_kit.contracts.diff import Finding, diff
from things_kit.messaging.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Compare contracts.")


class Require(StrEnum):
    """What must not be broken."""

    BACKWARD = "backward"
    FORWARD = "forward"
    FULL = "full"


@app.callback()
def contract() -> None:
    """Compare contracts."""


@app.command(name="diff")
def diff_(
    old: Annotated[
        str,
        typer.Argument(
            metavar="OLD", help="An AsyncAPI file, JSON or YAML, or MODULE:APP.", show_default=False
        ),
    ],
    new: Annotated[
        str, typer.Argument(metavar="NEW", help="The same of what is to come.", show_default=False)
    ],
    *,
    require: Annotated[
        Require, typer.Option(help="backward: new consumers read old messages; forward: old ones read new.")
    ] = Require.FULL,
    json: JsonFlag = False,
    app_dir: AppDir = Path(),
) -> None:
    """Report what is not backward (new consumers, old messages) or not forward (old consumers, new messages).

    Exit code 1: what is required is broken; 2: one of them cannot be read.
    """  # fmt: skip

    async def compare() -> None:
        documents = [_document(each, app_dir) for each in (old, new)]
        try:
            findings = diff(*documents)
        except ConfigError as error:
            raise CommandFailed(f"{old} and {new} cannot be compared: {error}", WRONG_USE) from error
        for finding in findings:
            say(as_json(msgspec.to_builtins(finding)) if json else safe(_sentence(finding)))
        wanted = {"backward", "forward"} if require is Require.FULL else {require.value}
        if any(finding.direction in wanted for finding in findings):
            raise CommandFailed("", FAILED)

    run(compare)


def _sentence(finding: Finding) -> str:
    where = ": ".join(filter(None, (finding.topic, finding.message, finding.path)))
    kind = f"not {finding.direction}" if finding.direction else "note"
    return f"{kind:<12} {where}: {finding.reason}"


def _document(source: str, folder: Path) -> Any:
    file = Path(source)
    if not file.is_file() and ":" in source:
        with application_kit():
            return document_of([source], folder)
    return document_in(file)
