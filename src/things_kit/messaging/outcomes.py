"""What a handler can answer beside returning."""

from collections.abc import Mapping
from datetime import timedelta


class Retry(Exception):
    """Handle this message again, `after` so many seconds; without `after`, by the retry policy.

    It counts as an attempt: after the last one the message is a dead letter.
    """

    def __init__(self, after: float | timedelta | None = None) -> None:
        super().__init__("the handler asked for another attempt")
        self.after = after


class Reject(Exception):
    """Never handle this message again: it goes to the dead letter at once.

    With `dead_letter=None` it is kept and tried again like any failure: nothing is lost unasked.
    """

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)
        self.reason = reason


class BatchError(Exception):
    """A batch handler's answer that some messages of the list failed; all others are acknowledged.

    `errors` maps an index in the list to what went wrong there; `Retry` and `Reject` mean what they always do.
    """

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        super().__init__(f"{len(errors)} messages of the batch failed")
        self.errors = dict(errors)
