"""How long this process has run: what is to end within some seconds may take longer while it stands still."""

import threading
import time
from typing import Final, Self

LOOK: Final = 0.05
"""Seconds from one look at the clock to the next."""


class Pulse:
    """A thread that does nothing but look at the clock: what it missed, all of this process has missed."""

    def __init__(self) -> None:
        self._missed = 0.0
        self._began = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="pulse", daemon=True)

    @property
    def ran(self) -> float:
        """For how many seconds the process has run: what must end within so many may take longer while it stands still."""
        return time.monotonic() - self._began - self._missed

    def _look(self) -> None:
        last = time.monotonic()
        while not self._over.wait(LOOK):
            now = time.monotonic()
            self._missed += max(0.0, now - last - LOOK)
            last = now

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
