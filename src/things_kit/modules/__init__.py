"""Each broker, configuration and logging, as modules of an application."""

from importlib.util import find_spec

for _package in ("pydantic", "pydantic_settings", "structlog", "yaml"):
    if find_spec(_package) is None:
        raise ModuleNotFoundError(
            f"things_kit.modules needs the package {_package!r}, which is not installed: "
            'pip install "things-kit[app]"',
            name=_package,
        )
