"""Telling the broker that we live, and noticing when it does not."""

import asyncio
from collections.abc import Callable
from typing import Final

SILENT: Final = 2
"""Heartbeats' times without a byte, after which a connection is dead: as AMQP has it, and the broker does with us."""

GRACE: Final = 1.0
"""Seconds until a second look decides: a process that stood still has not read yet what lies there."""


class Heartbeats:
    """Sends a heartbeat twice in `interval` seconds, and calls `silent` once nothing was heard for twice as long."""

    def __init__(
        self,
        interval: float,
        send: Callable[[], None],
        heard: Callable[[], float],
        silent: Callable[[str], None],
    ) -> None:
        self._interval = interval
        self._send = send
        self._heard = heard
        self._silent = silent
        self._loop = asyncio.get_running_loop()
        self._doubted = False
        self._sending = self._loop.call_later(interval / 2, self._beat)
        self._looking = self._loop.call_at(self._latest(), self._look)

    def stop(self) -> None:
        """The connection ends."""
        self._sending.cancel()
        self._looking.cancel()

    def _beat(self) -> None:
        self._sending = self._loop.call_later(self._interval / 2, self._beat)
        self._send()

    def _latest(self) -> float:
        """Until when something has to come."""
        return self._heard() + SILENT * self._interval

    def _look(self) -> None:
        now, latest = self._loop.time(), self._latest()
        if latest > now:
            self._doubted = False
            self._looking = self._loop.call_at(latest, self._look)
        elif not self._doubted:
            self._doubted = True
            self._looking = self._loop.call_later(GRACE, self._look)
        else:
            self._silent(f"it was silent for {SILENT * self._interval + GRACE:g} s")
