"""Waiting longer each time the broker stays away."""

import asyncio
from typing import Final

FIRST: Final = 0.05
LONGEST: Final = 2.0


class Backoff:
    """Growing waits, from 50 ms to 2 s, until `reset`."""

    def __init__(self) -> None:
        self._next = FIRST

    def reset(self) -> None:
        """Begin again with the shortest wait."""
        self._next = FIRST

    async def wait(self, until: float | None = None) -> None:
        """Wait once; not beyond `until`, in the loop's time."""
        wait, self._next = self._next, min(self._next * 2, LONGEST)
        if until is not None:
            wait = min(wait, max(0.0, until - asyncio.get_running_loop().time()))
        await asyncio.sleep(wait)
