"""What a command needs beside the extra `cli`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from things_kit.cli.running import CommandFailed

APPLICATION_KIT: Final = frozenset({"pydantic", "pydantic_settings", "structlog", "yaml"})


@contextmanager
def application_kit() -> Iterator[None]:
    """Turn a package of the extra `app` that is missing into a sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in APPLICATION_KIT:
            raise
        raise CommandFailed(f'this needs {missing}: pip install "things-kit[app]"') from None
