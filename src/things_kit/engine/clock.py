"""The wall clock, for times that other processes read too; everything else goes by the event loop's time."""

import time
from typing import Final

from things_kit.engine.surroundings import surroundings

SLEW: Final = 0.1
"""Seconds by which what is ahead comes closer in each second."""

# When it was read, and by how much it was ahead of that
_last = (time.monotonic(), time.time() - time.monotonic())


def steady() -> float:
    """Seconds since 1970; never less than before in this process, though somebody sets the clock back.

    What was to come in a minute would come in an hour otherwise, and leases would not end. Instead it goes slower until it is
    right again: a process that lives for months is not to do all an hour early for good.
    """
    if (other := surroundings.get()) is not None:
        return other.now()
    global _last  # noqa: PLW0603 - there is one clock, and threads read it: it is set in one
    wall, now = time.time(), time.monotonic()
    before, ahead = _last
    ahead = max(wall - now, ahead - SLEW * (now - before))
    _last = now, ahead
    return now + ahead
