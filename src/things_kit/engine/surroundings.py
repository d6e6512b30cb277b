"""What the engine has of the world around it beside the event loop: the wall clock, threads and randomness."""

import random
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, Protocol


class Surroundings(Protocol):
    """Another world than this one, such as a simulation."""

    chance: random.Random
    """Where jitter comes from."""

    def now(self) -> float:
        """The wall clock, in seconds since 1970."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a plain function that would have a thread of its own."""


surroundings: Final[ContextVar[Surroundings | None]] = ContextVar("things_kit.surroundings", default=None)
"""Those of this code; None: the real ones."""
