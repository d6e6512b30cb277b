"""What is logged of a broker that goes away and comes back."""

import asyncio
import logging
from typing import Final

log = logging.getLogger("things_kit.consumer")

QUIET: Final = 60.0
"""Seconds in which a broker that comes and goes is reported once."""


class Outages:
    """Reports each outage and its end once, but those of a broker that flaps once a minute, with their number."""

    def __init__(self, name: str, what: str = "the broker") -> None:
        self._name = name
        self._what = what
        self._away = False
        self._said = False
        self._unsaid = 0
        self._next = float("-inf")

    def lasts(self, error: BaseException) -> None:
        """The broker could not be reached: for the first time, or still."""
        if not self._away:
            self._away, self._said = True, False
            self._unsaid += 1
        now = asyncio.get_running_loop().time()
        if self._said or now < self._next:
            return
        before = f", {self._unsaid} times since the last report" if self._unsaid > 1 else ""
        log.warning("%s: %s is away%s: %s", self._name, self._what, before, error)
        self._said, self._unsaid, self._next = True, 0, now + QUIET

    def ended(self) -> None:
        """The broker is there."""
        if self._away and self._said:
            log.info("%s: back", self._name)
        self._away = False
