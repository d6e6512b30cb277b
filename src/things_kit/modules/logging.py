"""The module `logging`: structlog, with the message that is being handled in every line."""

import logging
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from things_kit.app.logs import LoggingSettings, logging_as
from things_kit.app.parts import invoke, provide
from things_kit.app.parts import module as make_module
from things_kit.app.settings import section
from things_kit.engine.driver import Delivery
from things_kit.engine.workers import handled_here

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    Logger = FilteringBoundLogger
else:

    class Logger(Protocol):
        """What to ask for in a constructor: structlog's logger, which is imported only for those who ask.

        A `logging.Logger` of the standard library is found too.
        """


class Logs:
    """The logging of this app is set up."""


def message_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the fields of the message that is being handled where this line is logged."""
    deliveries = handled_here()
    if len(deliveries) == 1:
        for name, value in _fields(deliveries[0]).items():
            event.setdefault(name, value)
    elif deliveries:
        event.setdefault("messages", len(deliveries))
        event.setdefault("group", deliveries[0].inbox.subscription.group)
    return event


def _fields(delivery: Delivery) -> dict[str, Any]:
    message = delivery.message
    fields = {
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "key": None if message.key is None else message.key.decode("utf-8", "backslashreplace"),
        "id": message.id,
        "attempt": message.attempt,
        "group": delivery.inbox.subscription.group,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _set_up(settings: LoggingSettings) -> Iterator[Logs]:
    with logging_as(settings, [message_fields]):
        yield Logs()


def _structlog(_: Logs) -> Any:
    import structlog  # noqa: PLC0415 - as above

    return structlog.get_logger("app")


def _standard(_: Logs) -> logging.Logger:
    return logging.getLogger("app")


def _begin(_: Logs) -> None:
    """Ask for the logging, so that it is set up before whatever comes after it in the app."""


_logs: Final = provide(_set_up)
_logs.outlasts = True  # the last line of an app is its own

module: Final = make_module(
    "logging",
    section("logging", LoggingSettings),
    _logs,
    provide(_structlog, as_=Logger),
    provide(_standard, as_=logging.Logger),
    invoke(_begin),
)
"""Sets up structlog and the standard library's logging by the section `logging`."""
