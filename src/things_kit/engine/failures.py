"""What is logged of messages that failed: no line too few, and not the same a thousand times."""

import asyncio
import logging
from types import TracebackType
from typing import Final, TypeAlias

import msgspec

from things_kit.engine.verdict import PERMANENT
from things_kit.messaging.outcomes import Retry

log = logging.getLogger("things_kit.consumer")

EVERY: Final = 5.0
"""Seconds between two lines about equal errors."""

MOST: Final = 100
"""Kinds of errors that are told apart; a consumer with more has other troubles."""

Sort: TypeAlias = tuple[type[BaseException], str, str, int]


class _Kind(msgspec.Struct, eq=False):
    """Equal errors: whose the first was, and how many came since the last line. The errors themselves hold too much."""

    first: str | None
    last: str = ""
    attempts: int = 0
    lost: int = 0
    goes_on: bool = False


class Failures:
    """Logs the failures of one topic's messages.

    What a handler says on purpose, and what concerns the message alone, is a line each. An unexpected error is a line
    with its traceback the first time, and that message's further attempts are a line each; other messages whose errors
    come from the same place are counted, and the number is logged every few seconds, and when it is over.
    """

    def __init__(self, name: str, permanent: tuple[type[BaseException], ...]) -> None:
        self._name = name
        self._expected = (Retry, *PERMANENT, *permanent)
        self._kinds: dict[Sort, _Kind] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def again(self, message: str | None, attempt: int, error: BaseException, wait: float) -> None:
        """An attempt failed, and there is another."""
        if self._is_counted(message, error, lost=False):
            return
        log.log(
            logging.INFO if isinstance(error, Retry) else logging.WARNING,  # it was asked for
            "%s: attempt %d of message %r failed: %r; again in %.3g s",
            self._name, attempt, message, error, wait,
            exc_info=self._untold(message, error),
        )  # fmt: skip

    def for_good(self, message: str | None, attempt: int, error: BaseException) -> None:
        """The last attempt failed."""
        if self._is_counted(message, error, lost=True):
            return
        log.error(
            "%s: message %r failed for good after attempt %d: %r",
            self._name, message, attempt, error,
            exc_info=self._untold(message, error),
        )  # fmt: skip

    def close(self) -> None:
        """Tell what is left; from here on nothing is summed up."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for kind in self._kinds.values():
            self._tell(kind)
        self._kinds.clear()

    def _untold(self, message: str | None, error: BaseException) -> BaseException | None:
        """The error, where its traceback is to be logged."""
        sort = _sort_of(error)
        if isinstance(error, self._expected) or sort in self._kinds:
            return None
        if len(self._kinds) < MOST:
            self._kinds[sort] = _Kind(message)
        return error

    def _is_counted(self, message: str | None, error: BaseException, *, lost: bool) -> bool:
        """Whether it is no news, and was counted."""
        kind = None if isinstance(error, self._expected) else self._kinds.get(_sort_of(error))
        if kind is None or kind.first == message or self._closed:
            return False
        kind.attempts += 1
        kind.lost += lost
        kind.last = _shown(error)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(EVERY, self._sum_up)
        return True

    def _sum_up(self) -> None:
        self._timer = None
        told = [self._tell(kind) for kind in self._kinds.values()]
        if any(told):
            self._timer = asyncio.get_running_loop().call_later(EVERY, self._sum_up)

    def _tell(self, kind: _Kind) -> bool:
        """Log what came since the last time, or that nothing did; whether anything may still come."""
        if kind.attempts:
            lost = f", {kind.lost} messages for good" if kind.lost else ""
            log.warning(
                "%s: %d more attempts failed%s, at last: %s", self._name, kind.attempts, lost, kind.last
            )
        elif kind.goes_on:
            log.info("%s: no attempt failed so for %g s: %s", self._name, EVERY, kind.last)
        kind.goes_on = kind.attempts > 0
        kind.attempts = kind.lost = 0
        return kind.goes_on


def _shown(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception:  # noqa: BLE001 - whatever its __repr__ does must not lose a message
        return type(error).__qualname__


def _sort_of(error: BaseException) -> Sort:
    """Errors of one type that were raised at one place are equal."""
    place: TracebackType | None = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return type(error), "", "", 0
    code = place.tb_frame.f_code
    return type(error), code.co_filename, code.co_qualname, place.tb_lineno
