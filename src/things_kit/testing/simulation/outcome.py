"""What came out of one history."""

import traceback
from contextlib import suppress
from pathlib import Path

import msgspec

from things_kit.testing.simulation.history import Row
from things_kit.testing.simulation.plan import Plan


class Outcome(msgspec.Struct, kw_only=True):
    """What came out of one history.

    Attributes:
        check: Which check failed, or which part of the world raised; None where all held.
        text: How, as it is shown.
        error: The exception's type, by which two failures are told to be the same.
    """

    plan: Plan
    check: str | None = None
    error: str = ""
    text: str = ""
    hash: str = ""
    rows: list[Row] = []
    happened: list[tuple[str, int]] = []
    reached: set[str] = set()
    turns: int = 0
    steps: int = 0
    messages: int = 0
    seconds: float = 0.0

    def fail(self, check: str, error: BaseException) -> None:
        """Note which check failed, and how."""
        self.check, self.error, self.text = check, type(error).__name__, _text(error)

    def same_failure(self, other: "Outcome") -> bool:
        """Whether the same check failed in both."""
        return self.check is not None and (self.check, self.error) == (other.check, other.error)


def _text(error: BaseException) -> str:
    """The traceback, from the user's code on."""
    own, trace = str(Path(__file__).parent), error.__traceback__
    while (
        trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename.startswith(own)
    ):
        trace = trace.tb_next
    with suppress(Exception):
        return "".join(traceback.format_exception(type(error), error, trace)).strip()
    return repr(error)
