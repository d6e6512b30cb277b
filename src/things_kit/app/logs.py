"""Logging by structlog, that of the standard library included: lines for people on a terminal, JSON otherwise."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final, Literal, TextIO, TypeAlias

import structlog
from pydantic import BaseModel, BeforeValidator, Field
from structlog.typing import EventDict, Processor

Level: TypeAlias = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]

TOLD: Final = "_things_kit_told"


class LoggingSettings(BaseModel):
    """The section `logging`."""

    level: Level = "INFO"
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto: lines for people on a terminal, JSON otherwise."
    )
    levels: dict[str, Level] = Field(
        default={}, description="Levels of single loggers, such as things_kit.consumer: WARNING."
    )


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
def logging_as(settings: LoggingSettings, fields: Sequence[Processor] = ()) -> Iterator[None]:
    """Log as the settings say, until left; then everything is as it was.

    `fields` are processors that know more of where a line comes from. They run only for lines that are logged.
    """
    root = logging.getLogger()
    levels = {"": settings.level, **settings.levels}
    before = (root.handlers[:], {name: logging.getLogger(name).level for name in levels})
    configured = structlog.get_config() if structlog.is_configured() else None
    common = _common(fields)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(settings, common, sys.stderr))
    for old in before[0]:
        root.removeHandler(old)
    root.addHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *common,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        # What is below all levels costs one empty call
        wrapper_class=structlog.make_filtering_bound_logger(min(map(_number, levels.values()))),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    try:
        yield
    finally:
        handler.flush()
        root.removeHandler(handler)
        for old in before[0]:
            root.addHandler(old)
        for name, number in before[1].items():
            logging.getLogger(name).setLevel(number)
        structlog.reset_defaults() if configured is None else structlog.configure(**configured)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level]


def _common(fields: Sequence[Processor]) -> list[Processor]:
    return [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *fields,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.StackInfoRenderer(),
    ]


def _formatter(settings: LoggingSettings, common: Sequence[Processor], stream: TextIO) -> logging.Formatter:
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
        foreign_pre_chain=common,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, told_once, *last],
    )


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else repr(value)
