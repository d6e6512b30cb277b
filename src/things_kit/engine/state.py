"""What becomes of a delivery, step by step."""

from enum import IntEnum
from typing import Final


class State(IntEnum):
    """Where a delivery is, from its arrival until the broker knows what became of it."""

    READY = 0
    """A worker takes it next."""
    QUEUED = 1
    """Behind an earlier one of its lane."""
    GATHERED = 2
    """In a batch that is being filled."""
    HANDLING = 3
    """Its handler runs."""
    BACKING_OFF = 4
    """Waits here for its next attempt, and its lane with it."""
    ASIDE = 5
    """Waits here for its next attempt; its lane goes on."""
    LEAVING = 6
    """Its dead letter is on its way; its lane waits for it."""
    LEAVING_ASIDE = 7
    """Its dead letter or a copy of it is on its way; no lane here waits for it."""
    SETTLING = 8
    """Its outcome is on its way to the broker."""
    GONE = 9
    """Somebody else's by now, or given back by a stop that did not wait for it.

    Its handler may be running: its lane goes on when that ends; nobody asks for the outcome.
    """
    DONE = 10
    """Settled, or somebody else's, and nothing here waits for it."""


READY: Final = State.READY
QUEUED: Final = State.QUEUED
HANDLING: Final = State.HANDLING
SETTLING: Final = State.SETTLING
GONE: Final = State.GONE
"""The same by a shorter way: before Python 3.12 a member of an enumeration costs more to look up than to store."""
