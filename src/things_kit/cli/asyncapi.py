"""`things-kit asyncapi`: what an app or topics say of themselves."""

import json
from pathlib import Path
from typing import Annotated

import typer

from things_kit.cli.named import document_of
from things_kit.cli.needs import application_kit
from things_kit.cli.printing import safe, say
from things_kit.cli.running import CommandFailed, run

AppDir = Annotated[
    Path, typer.Option(file_okay=False, exists=True, metavar="FOLDER", help="Where MODULE is looked for.")
]


def asyncapi(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="MODULE:APP|MODULE:TOPIC...", help="An app, or topics.", show_default=False),
    ],
    *,
    yaml: Annotated[bool, typer.Option("--yaml", help="Print YAML instead of JSON.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(dir_okay=False, metavar="FILE", help="Write a self-contained page instead of printing."),
    ] = None,
    app_dir: AppDir = Path(),
) -> None:
    """Print the AsyncAPI 3.0 document of an app or of topics. Needs no configuration and no connection."""

    async def print_it() -> None:
        with application_kit():
            document = document_of(targets, app_dir)
        if html is not None:
            _write(html, document)
        elif yaml:
            with application_kit():
                import yaml as writer  # noqa: PLC0415 - an extra

                for line in writer.safe_dump(document, sort_keys=False, allow_unicode=True).splitlines():
                    say(safe(line))
        else:
            for line in json.dumps(document, indent=2).splitlines():
                say(line)

    run(print_it)


def _write(file: Path, document: dict[str, object]) -> None:
    from things_kit.contracts.page import page  # noqa: PLC0415 - only for this option

    try:
        file.write_text(page(document), encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror}") from error
