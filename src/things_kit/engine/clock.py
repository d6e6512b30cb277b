"""The wall clock, for times that other processes read too; everything else goes by the event loop's time."""

import time

from things_kit.engine.surroundings import surroundings

_offset = time.time() - time.monotonic()


def steady() -> float:
    """Seconds since 1970; never less than before in this process, though somebody sets the clock back.

    What was to come in a minute would come in an hour otherwise, and leases would not end.
    """
    if (other := surroundings.get()) is not None:
        return other.now()
    global _offset  # noqa: PLW0603 - there is one clock
    _offset = max(_offset, time.time() - time.monotonic())
    return time.monotonic() + _offset
