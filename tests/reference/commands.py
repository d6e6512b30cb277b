"""Every command with its arguments and options, from its own help."""

import inspect
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import typer

from tests.reference.tables import code, table
from things_kit.cli.app import app

INTRODUCTION = """# Every command

What `things-kit COMMAND --help` says, on one page. What the commands are for is told in [Command line](../command-line.md).
"""


def commands_page() -> str:
    program: Any = typer.main.get_command(app)
    return "\n".join(
        [INTRODUCTION, *(part for words, each in commands(program) for part in told(words, each))]
    )


def commands(group: Any, words: str = "things-kit") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{words} {name}")
        else:
            yield f"{words} {name}", command


def told(words: str, command: Any) -> Iterator[str]:
    shown = [each for each in command.params if not each.hidden and each.name != "help"]
    arguments = [each for each in shown if not is_option(each)]
    options = [each for each in shown if is_option(each)]
    usage = " ".join([words, *map(written, arguments), *(["[OPTIONS]"] if options else [])])
    yield f"## `{words}`\n"
    yield f"```console\n$ {usage}\n```\n"
    yield f"{inspect.cleandoc(command.help)}\n"
    rows = [[name_of(each, command), str(each.help or ""), default(each)] for each in [*arguments, *options]]
    if rows:
        yield table(["argument or option", "what it is", "default"], rows) + "\n"


def is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def written(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def name_of(parameter: Any, command: Any) -> str:
    if not is_option(parameter):
        return code(written(parameter))
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return code(names)
    annotation = inspect.signature(command.callback).parameters[parameter.name].annotation
    value = parameter.metavar or "|".join(choices(annotation)) or parameter.name.upper()
    return code(f"{names} {value}")


def choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((found for each in get_args(annotation) if (found := choices(each))), ())


def default(parameter: Any) -> str:
    if parameter.required:
        return "must be said"
    if not is_option(parameter) or parameter.is_flag or parameter.default in {None, ()}:
        return ""
    return code(str(parameter.default))
