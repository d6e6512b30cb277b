"""Parts of sentences that users read."""

import math
from collections.abc import Sequence
from typing import Final

FEW: Final = 8
"""Names that a sentence has room for."""


def counted(number: int, noun: str, several: str = "") -> str:
    """A number of things: `1 message`, `2,000 messages`."""
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"


def duration(seconds: float) -> str:
    """For how long, in the unit that people would use."""
    if seconds == math.inf:
        return "ever"
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"


def some(names: Sequence[object]) -> str:
    """Names with commas between them; of many the first."""
    return ", ".join(map(str, names[:FEW])) + (", ..." if len(names) > FEW else "")
