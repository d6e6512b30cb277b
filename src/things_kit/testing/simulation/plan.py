"""Everything that is drawn in a history: from one seed, in streams of their own, and with less of it when asked."""

import random
from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec

from things_kit.testing.simulation.faults import DEFAULTS, Fault

REST: Final = 7200.0
"""Seconds without any event after which a history that was healed, and is not at rest, never will be."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One history: a seed, and what shrinking has taken away from it.

    Attributes:
        seed: Where every stream comes from.
        processes: How many processes consume.
        faults: Only these occurrences, as (name, number of the occasion); None: as they are drawn.
        messages: Only these messages of the workload, by their number; None: all.
        turns: Only so many of the loop's choices are drawn, the rest is first in, first out; None: all.
        sizes: Which of several sizes of all that goes wrong: how long it takes, and how soon a process dies.
        rest: Seconds without any event after which it counts as one that never comes to rest.
    """

    seed: int
    processes: int
    faults: frozenset[tuple[str, int]] | None = None
    messages: frozenset[int] | None = None
    turns: int | None = None
    sizes: int = 0
    rest: float = REST

    @property
    def plain(self) -> "Plan":
        """The same workload, without faults and in order."""
        return msgspec.structs.replace(self, faults=frozenset(), turns=0)


class Chance:
    """Draws what happens in the history of a plan.

    Attributes:
        happened: The faults that had an effect, as (name, number of the occasion), in order.
        workload: The randomness of the user's code.
        healed: Nothing goes wrong any more.
        looming: How often each fault has been drawn and has had no effect yet.
    """

    def __init__(self, plan: Plan, faults: Mapping[str, Fault]) -> None:
        self.plan = plan
        self.happened: list[tuple[str, int]] = []
        self.workload = self.stream("workload")
        self.healed = False
        self.looming: Counter[str] = Counter()
        self._schedule = self.stream("schedule")
        self._size = self.stream(f"size {plan.sizes}" if plan.sizes else "size")
        self._occasions: Counter[str] = Counter()
        self._left = {name: fault.budget for name, fault in faults.items()}
        self._probability = {name: fault.probability for name, fault in faults.items()}
        self._streams = {name: self.stream(name) for name in faults}
        self._turns = 0
        if (
            plan.faults is None and len(faults) > 1
        ):  # swarm: each seed leaves out some, so that others come to bear
            mix = self.stream("mix")
            for name in faults:
                if mix.random() < 0.3:
                    self._probability[name] = 0.0

    def stream(self, name: str) -> random.Random:
        """Randomness of its own for each purpose, so that one more draw in one changes no other."""
        return random.Random(f"{self.plan.seed} {name}")  # noqa: S311 - it is to be foreseeable

    def turn(self, count: int) -> int:
        """Which of so many tasks goes on."""
        self._turns += 1
        if self.plan.turns is not None and self._turns > self.plan.turns:
            return 0
        return int(self._schedule.random() * count)

    @property
    def turns(self) -> int:
        """How many choices there were so far."""
        return self._turns

    def left(self, name: str) -> int:
        """How often this fault can have an effect still, or would by default."""
        return min(self._left.get(name, 0), DEFAULTS[name][1]) + self.looming[name]

    def strikes(self, name: str, *, bearable: bool = True) -> bool:
        """Whether this fault happens on this occasion; the caller then makes it so.

        One that is not `bearable` does not: with those to come a right handler would lose a message to its dead letter.
        """
        if name not in self._probability:
            return False
        self._occasions[name] += 1
        occasion = (name, self._occasions[name])
        drawn = self._streams[name].random()
        if self.healed or not bearable:
            return False
        if self.plan.faults is not None:
            strikes = occasion in self.plan.faults
        else:
            strikes = self._left[name] > 0 and drawn < self._probability[name]
        if strikes:
            self._left[name] -= 1
            self.happened.append(occasion)
        return strikes

    def between(self, least: float, most: float) -> float:
        """How much of it, such as how long."""
        return self._size.uniform(least, most)

    def below(self, count: int) -> int:
        """Which of so many."""
        return int(self._size.random() * count)
