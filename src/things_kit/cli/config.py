"""`things-kit config`: what is in force, and what could be."""

from contextlib import suppress
from importlib import import_module
from typing import Annotated

import typer

from things_kit.cli.imported import importing
from things_kit.cli.needs import application_kit
from things_kit.cli.options import JsonFlag
from things_kit.cli.printing import as_json, complain, safe, say
from things_kit.cli.running import WRONG_USE, CommandFailed, run
from things_kit.messaging.errors import ConfigError


def config(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[schema] [MODULE:APP]",
            help="`schema` prints a JSON Schema of config.yaml instead; an app has sections of its own.",
            show_default=False,
        ),
    ] = None,
    *,
    json: JsonFlag = False,
) -> None:
    """Print the configuration that is in force here, from config.yaml and the environment, its secrets masked.

    Without an app these are the sections of the brokers and of logging that are there.
    """

    async def print_it() -> None:
        _config(list(words or []), json=json)

    run(print_it)


def _config(words: list[str], *, json: bool) -> None:
    asked_for_schema = words[:1] == ["schema"]
    targets = words[1:] if asked_for_schema else words
    if len(targets) > 1 or any(":" not in target for target in targets):
        raise CommandFailed("expected `config [schema] [MODULE:APP]`", WRONG_USE)
    with application_kit():
        kinds = _sections(targets[0]) if targets else _built_in()
        if asked_for_schema:
            from things_kit.app.shown import schema  # noqa: PLC0415 - an extra

            say(as_json(schema(kinds)))
            return
        in_force = _in_force(kinds, only_given=not targets)
    if json:
        say(as_json(in_force))
    else:
        import yaml  # noqa: PLC0415 - an extra

        for line in yaml.safe_dump(in_force, sort_keys=False, allow_unicode=True).splitlines():
            say(safe(line))


def _sections(target: str) -> dict[str, type]:
    from things_kit.app.target import TargetError, load_app  # noqa: PLC0415 - an extra
    from things_kit.modules.config import sections_of  # noqa: PLC0415

    try:
        with importing(target.partition(":")[0], through=TargetError), application_kit():
            app = load_app(target, factory=None)
        return sections_of(app)
    except TargetError as error:
        raise CommandFailed(str(error), WRONG_USE) from error


def _built_in() -> dict[str, type]:
    from things_kit.app.app import App  # noqa: PLC0415
    from things_kit.modules.config import BUILT_IN, sections_of  # noqa: PLC0415

    modules = []
    for name in BUILT_IN:
        with suppress(
            ModuleNotFoundError
        ):  # of an extra that is not installed, so no app here has this section
            modules.append(import_module(f"things_kit.modules.{name}").module)
    return sections_of(App(*modules))


def _in_force(kinds: dict[str, type], *, only_given: bool) -> dict[str, object]:
    from things_kit.app.settings import SettingsError, given  # noqa: PLC0415
    from things_kit.app.shown import shown  # noqa: PLC0415
    from things_kit.modules.config import read  # noqa: PLC0415

    try:
        if only_given:
            kinds = given(kinds)
        settings = read(kinds)
    except (SettingsError, ConfigError) as error:
        for mistake in str(error).splitlines():
            complain(mistake)
        raise CommandFailed(code=WRONG_USE) from error
    return {name: shown(kinds[name], value) for name, value in settings.items()}
