"""`package.module:name`: how a command line names an app."""

import sys
from importlib import import_module
from inspect import iscoroutinefunction, isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

from things_kit.app.app import App


class TargetError(Exception):
    """There is no app under this name: a sentence."""


def load_app(target: str, *, factory: bool | None = False, folder: Path | None = None) -> App:
    """The app that `module:name` names, or with `factory` the one that the function of this name returns.

    With None it is whichever of both is there. The module is looked for in `folder` as well, which is the current one where none is given.

    Raises:
        TargetError: There is none. What the module itself raises is not caught.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise TargetError(f"expected an app as MODULE:NAME, such as shop.main:app; it is {target!r}")
    here = str((folder or Path()).absolute())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # that module is there, but one that it needs is not
        raise TargetError(f"there is no module {error.name!r} in {here}, nor installed") from error
    found = getattr(module, name, None)
    if found is None:
        raise TargetError(f"{module_name} has no App named {name!r}{_meant(module)}")
    made = found
    if factory is None:
        factory = isfunction(found)
    if factory:
        if not callable(found):
            raise TargetError(f"{target} is no function that makes an App: leave --factory out")
        if iscoroutinefunction(found):
            raise TargetError(f"{target} is async; a function that makes an App is a plain one")
        made = found()
    if isinstance(made, App):
        return made
    if factory:
        raise TargetError(f"{target}() returned {_kind_of(made)}, no App")
    hint = "; a function that makes one needs --factory" if callable(found) else _meant(module)
    raise TargetError(f"{target} is {_kind_of(found)}, no App{hint}")


def _meant(module: ModuleType) -> str:
    apps = [name for name, value in vars(module).items() if isinstance(value, App)]
    return f"; the App there is {' or '.join(map(repr, apps))}" if apps else ""


def _kind_of(found: Any) -> str:
    if isinstance(found, type):
        return "a class"
    return "a function" if callable(found) else f"an object of type {type(found).__name__}"
