"""How much of what waits at the broker a consumer asks for: what its handler could begin now, and no more."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

AHEAD: Final = 0.5
"""Seconds of work, at the pace of the last ones, that are fetched ahead."""


class Window:
    """Follows the pace of the handler; one for all topics of a consumer.

    It counts what runs or could begin: `width` at once, and as many as were finished in the last half second. So a
    fast handler is never without work, and of two processes of a group none holds what the other could begin.

    Args:
        width: Messages that are handled at once: handler calls times messages in each.
        active: How many are ready or being handled at this moment.
    """

    def __init__(self, width: int, active: Callable[[], int]) -> None:
        self.finished = 0
        self._width = width
        self._active = active
        self._samples: deque[tuple[float, int]] = deque()

    @property
    def size(self) -> int:
        """How many may be ready or being handled."""
        now = asyncio.get_running_loop().time()
        samples = self._samples
        if not samples or now - samples[-1][0] >= AHEAD / 16:
            samples.append((now, self.finished))
        while len(samples) > 1 and samples[1][0] <= now - AHEAD:
            samples.popleft()
        since, before = samples[0]
        recent = self.finished - before
        if now - since > AHEAD:
            recent = int(recent * AHEAD / (now - since))
        return self._width + recent

    @property
    def room(self) -> int:
        """How many more could begin soon."""
        return self.size - self._active()
