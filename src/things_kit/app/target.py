"""`package.module:name`: how a command line names an app."""

import sys
from importlib import import_module
from pathlib import Path

from things_kit.app.app import App


class TargetError(Exception):
    """There is no app under this name: a sentence."""


def load_app(target: str) -> App:
    """The app that `module:name` names, or that the function of this name returns; looked for from here on, too.

    Raises:
        TargetError: There is none. What the module itself raises is not caught.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise TargetError(f"expected an app as MODULE:NAME, such as shop.main:app; it is {target!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # that module is there, but one that it needs is not
        raise TargetError(f"there is no module {error.name!r} in {here}, nor installed") from error
    found = getattr(module, name, None)
    if found is not None and not isinstance(found, App) and callable(found):
        found = found()
    if not isinstance(found, App):
        raise TargetError(f"{module_name} has no App named {name!r}")
    return found
