"""`MODULE:NAME` on the command line: topics and apps, and documents that are made of them."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from things_kit.cli.imported import importing
from things_kit.cli.running import WRONG_USE, CommandFailed
from things_kit.messaging.topic import Topic


def named(target: str, folder: Path) -> Any:
    """What `module:name` names. Raises CommandFailed where there is nothing."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise CommandFailed(
            f"expected MODULE:NAME, such as shop.contracts:orders; it is {target!r}", WRONG_USE
        )
    if str(folder.absolute()) not in sys.path:
        sys.path.insert(0, str(folder.absolute()))
    try:
        with importing(module_name):
            found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        raise CommandFailed(
            f"there is no module {error.name!r} in {folder.absolute()}, nor installed", WRONG_USE
        ) from error
    for attribute in name.split("."):
        if not hasattr(found, attribute):
            raise CommandFailed(f"{module_name} has nothing named {name!r}", WRONG_USE)
        found = getattr(found, attribute)
    return found


def topics_of(targets: Sequence[str], folder: Path) -> list[Topic[Any]]:
    """The topics of these names. Raises CommandFailed where one is none."""
    found = [named(target, folder) for target in targets]
    for target, each in zip(targets, found, strict=True):
        if not isinstance(each, Topic):
            raise CommandFailed(f"{target} is no Topic but {type(each).__name__}", WRONG_USE)
    return found


def document_of(targets: Sequence[str], folder: Path) -> dict[str, Any]:
    """The AsyncAPI document of an app, or of topics. Raises CommandFailed."""
    from things_kit.contracts.asyncapi import asyncapi  # noqa: PLC0415 - other commands need none of it

    found = [named(target, folder) for target in targets]
    title = targets[0].partition(":")[0]
    try:
        if len(found) == 1 and callable(getattr(found[0], "asyncapi", None)):
            document: dict[str, Any] = found[0].asyncapi(title)
            return document
        return asyncapi(title, topics=topics_of(targets, folder))
    except TypeError as error:
        raise CommandFailed(f"{', '.join(targets)}: {error}", WRONG_USE) from error
