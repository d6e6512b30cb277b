"""What a handler can answer beside returning."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from things_kit.messaging.errors import ConfigError
from things_kit.messaging.policy import LONGEST, Seconds, is_number


class _Outcome(Exception):
    """It may come from another process, in which the handler has the work done: what it says comes along as it is."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _as_it_was, (type(self), self.args), self.__dict__


def _as_it_was(kind: type[_Outcome], arguments: tuple[Any, ...]) -> _Outcome:
    return kind.__new__(kind, *arguments)


class Retry(_Outcome):
    """Handle this message again, `after` so many seconds; without `after`, by the retry policy.

    It counts as an attempt: after the last one the message is a dead letter. More than a year is a year; what is no
    duration counts as not said.
    """

    def __init__(self, after: Seconds | None = None) -> None:
        self.after = after
        self.wait, remark = _bounded(after)
        super().__init__(f"the handler asked for another attempt{remark}")


class Later(_Outcome):
    """Not now: the message goes back to the head of its key for `after` seconds. No attempt is counted.

    It occupies no worker meanwhile, and its lease is kept. Raised by middleware, or by a handler. More than a year is a
    year; of a batch all of it waits.
    """

    def __init__(self, after: Seconds) -> None:
        wait, remark = _bounded(after)
        if wait is None:
            raise ConfigError(f"Later needs a duration in seconds; it has {after!r}")
        self.after = after
        self.wait = wait
        super().__init__(f"the message is to be handled {wait:g} s later{remark}")


def _bounded(after: Seconds | None) -> tuple[float | None, str]:
    """The wait in seconds, None where there is none, and what there is to remark on it."""
    wait = after.total_seconds() if isinstance(after, timedelta) else after
    if wait is None:
        return None, ""
    if is_number(wait) and wait > LONGEST:
        return LONGEST, f" after {after!r}, of which no more than a year is waited"
    if is_number(wait) and wait <= LONGEST:
        return max(0.0, float(wait)), ""
    return None, f" after {after!r}, which is no duration"


class Reject(_Outcome):
    """Never handle this message again: it goes to the dead letter at once.

    With `dead_letter=None` it is kept and tried again like any failure: nothing is lost unasked.
    """

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)
        self.reason = reason


class BatchError(_Outcome):
    """A batch handler's answer that some messages of the list failed; all others are acknowledged.

    `errors` maps an index in the list to what went wrong there; `Retry` and `Reject` mean what they always do.
    """

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        super().__init__(f"{len(errors)} messages of the batch failed")
        self.errors = dict(errors)

    def moved(self, places: Sequence[int]) -> "BatchError | None":
        """The same for a longer list, of which the handler was given what is at these places.

        None if it names what was not there: whatever that means, it does not mean that all else is well.
        """
        if not self.errors.keys() <= set(range(len(places))):
            return None
        return BatchError({places[index]: error for index, error in self.errors.items()})
