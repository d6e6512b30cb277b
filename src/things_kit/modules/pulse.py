"""Tells from another thread whether an event loop still turns."""

import asyncio
import time
from typing import Final

INTERVAL: Final = 0.5
"""Seconds between two beats."""


class Pulse:
    """Beats on the running loop from now on, until it is stopped."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._beat()

    def age(self) -> float:
        """For how many seconds the loop has not turned, as far as can be told. For any thread."""
        return max(0.0, time.monotonic() - self._last - INTERVAL)

    def stop(self) -> None:
        """Beat no more."""
        self._next.cancel()

    def _beat(self) -> None:
        self._last = time.monotonic()
        self._next = self._loop.call_later(INTERVAL, self._beat)
