"""A simulated process: whose code is running."""

import random
from contextvars import ContextVar
from typing import Final


class SimulatedProcess:
    """What one process has to itself; a restart makes a new one of the same number.

    Attributes:
        number: From 1; 0 is the workload's, which never crashes.
        generation: How often it was started before.
        skew: Seconds by which its wall clock is wrong.
        gone: It has crashed: nothing of it goes on.
        chance: Where its engine's randomness comes from.
    """

    def __init__(self, number: int, generation: int, skew: float, chance: random.Random) -> None:
        self.number = number
        self.generation = generation
        self.skew = skew
        self.gone = False
        self.chance = chance

    def __repr__(self) -> str:
        return "workload" if self.number == 0 else f"process {self.number}"


PROCESS: Final[ContextVar[SimulatedProcess | None]] = ContextVar("things_kit.simulated_process", default=None)
"""The process that this code belongs to; None: the broker's, or the simulation's own."""
