"""Logging by structlog, that of the standard library included: lines for people on a terminal, JSON otherwise."""

import logging
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, Field

from things_kit.app.imports import once_imported

Level: TypeAlias = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]

Fields: TypeAlias = Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]
"""A processor of structlog that knows more of where a line comes from."""

STRUCTLOG: Final = "structlog"


class LoggingSettings(BaseModel):
    """The section `logging`."""

    level: Level = "INFO"
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto: lines for people on a terminal, JSON otherwise."
    )
    levels: dict[str, Level] = Field(
        default={}, description="Levels of single loggers, such as things_kit.consumer: WARNING."
    )

    @property
    def numbers(self) -> dict[str, int]:
        """The levels of all loggers that are named here, the root's under the empty name."""
        known = logging.getLevelNamesMapping()
        return {name: known[level] for name, level in {"": self.level, **self.levels}.items()}


class LineFormatter(logging.Formatter):
    """Formats by structlog, which is imported for the first line: it takes longer than all else at start."""

    def __init__(self, make: Callable[[], logging.Formatter]) -> None:
        super().__init__()
        self._make = make
        self._made: logging.Formatter | None = None

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        if self._made is None:
            self._made = self._make()
        return self._made.format(record)


@contextmanager
def logging_as(settings: LoggingSettings, fields: Sequence[Fields] = ()) -> Iterator[None]:
    """Log as the settings say, until left; then everything is as it was.

    `fields` run only for lines that are logged.

    Raises:
        ModuleNotFoundError: structlog is not installed.
    """
    if sys.modules.get(STRUCTLOG) is None and find_spec(STRUCTLOG) is None:
        raise ModuleNotFoundError(
            f'logging needs the package {STRUCTLOG!r}, which is not installed: pip install "things-kit[app]"',
            name=STRUCTLOG,
        )

    def configured() -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = _lines().configured(settings, fields)
        return context

    stream = sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(lambda: _lines().formatter(settings, fields, stream)))
    with _handled_by(handler, settings.numbers), once_imported(STRUCTLOG, configured):
        yield


@contextmanager
def _handled_by(handler: logging.Handler, levels: dict[str, int]) -> Iterator[None]:
    """Have this handler at the root, beside those of others, and these levels of loggers."""
    root = logging.getLogger()
    before = {name: logging.getLogger(name).level for name in levels}
    root.addHandler(handler)
    for name, number in levels.items():
        logging.getLogger(name).setLevel(number)
    try:
        yield
    finally:
        handler.flush()
        root.removeHandler(handler)
        for name, number in before.items():
            logging.getLogger(name).setLevel(number)


def _lines() -> ModuleType:
    import_module(STRUCTLOG)  # before what needs it: its import may be what configures it
    return import_module("things_kit.app.lines")
