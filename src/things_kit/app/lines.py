"""How structlog makes a line. Nothing imports this before the first line is logged."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor

from things_kit.app.logs import LoggingSettings

TOLD: Final = "_things_kit_told"


def told_once(_: Any, __: str, event: EventDict) -> EventDict:
    """Let the traceback of an error through once, however many report that error on its way."""
    error = event.get("exc_info")
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        if getattr(error, TOLD, False):
            del event["exc_info"]
        else:
            setattr(error, TOLD, True)
    return event


@contextmanager
def configured(settings: LoggingSettings, fields: Sequence[Processor]) -> Iterator[None]:
    """Have structlog hand its lines to the standard library's loggers, until left; then it is as it was."""
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_common(fields),
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        # What is below all levels costs one empty call
        wrapper_class=structlog.make_filtering_bound_logger(min(settings.numbers.values())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    try:
        yield
    finally:
        structlog.reset_defaults() if before is None else structlog.configure(**before)


def formatter(settings: LoggingSettings, fields: Sequence[Processor], stream: TextIO) -> logging.Formatter:
    """What makes the line of a record, be it structlog's or not."""
    people = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    last: list[Processor] = (
        # Not the default formatter of tracebacks: where rich is installed that shows local variables, and secrets
        [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
        if people
        else [
            structlog.processors.format_exc_info,
            structlog.processors.UnicodeDecoder(),
            structlog.processors.JSONRenderer(default=_plain),
        ]
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_common(fields), _unformatted],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, told_once, *last],
    )


def _common(fields: Sequence[Processor]) -> list[Processor]:
    return [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *fields,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.ExtraAdder(),
        _uncoloured,
        structlog.processors.StackInfoRenderer(),
    ]


def _uncoloured(_: Any, __: str, event: EventDict) -> EventDict:
    """Without what uvicorn adds to its lines: the same again, for a terminal of its own."""
    event.pop("color_message", None)
    return event


def _unformatted(_: Any, __: str, event: EventDict) -> EventDict:
    """Without what other handlers' formatters have left in a record of the standard library."""
    event.pop("message", None)
    event.pop("asctime", None)
    return event


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else repr(value)
