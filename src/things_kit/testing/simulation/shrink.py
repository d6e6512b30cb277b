"""Makes a history that fails as short as it gets: fewer processes, faults and messages, and more in order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from things_kit.testing.simulation.outcome import Outcome
from things_kit.testing.simulation.plan import Plan

ItemT = TypeVar("ItemT")

MOST: Final = 200_000
"""Steps of all histories together that shrinking takes at most: some seconds."""

SOON: Final = 300.0
"""Seconds without any event after which one that does not come to rest is taken for such, until the last is run in full."""

NEAR: Final = 4
"""Occasions by which a fault is moved to an earlier one."""

SIZES: Final = 20
"""How many other sizes of what goes wrong are tried with a shorter workload."""


class Shrinker:
    """Tries plans with less in them, and keeps what fails in the same way."""

    def __init__(self, run: Callable[[Plan], Outcome], failing: Outcome) -> None:
        self.best = failing
        self._run = run
        self._left = MOST
        self._tried: set[Plan] = set()
        self._plain: dict[Plan, bool] = {}

    def shrink(self) -> Outcome:
        """The shortest history found."""
        failing = self.best
        self._fix()
        if failing.check == "rest":
            self._try(msgspec.structs.replace(self.best.plan, rest=SOON))
        before = None
        while before != self.best.plan and self._left > 0:
            before = self.best.plan
            self._fewer_processes()
            self._try(msgspec.structs.replace(self.best.plan, turns=0))
            self._fewer("faults")  # before messages, as each is moved about where there are fewer
            self._fewer("messages")
            self._fewer_turns()
        if self.best.plan.rest == failing.plan.rest:
            return self.best
        shortest = self._run(msgspec.structs.replace(self.best.plan, rest=failing.plan.rest))
        return shortest if shortest.same_failure(failing) else failing

    def _fix(self) -> None:
        """Say explicitly what was drawn, so that it can be taken away."""
        plan = self.best.plan
        explicit = msgspec.structs.replace(
            plan,
            faults=frozenset(self.best.happened),
            messages=frozenset(range(self.best.messages)),
            turns=self.best.turns,
        )
        self._try(explicit)

    def _try(self, plan: Plan, *, workload: bool = False) -> bool:
        """Whether this fails too; a shorter workload counts only if it passes where nothing goes wrong."""
        if self._left <= 0 or plan in self._tried or (workload and self._plain.get(plan.plain) is False):
            return False
        self._tried.add(plan)
        outcome = self._run_one(plan)
        if not outcome.same_failure(self.best) or (workload and not self._passes(plan.plain)):
            return False
        self.best = outcome
        return True

    def _passes(self, plain: Plan) -> bool:
        if plain not in self._plain:
            self._plain[plain] = self._run_one(plain).check is None
        return self._plain[plain]

    def _run_one(self, plan: Plan) -> Outcome:
        outcome = self._run(plan)
        self._left -= 100 + outcome.steps
        return outcome

    def _fewer_processes(self) -> None:
        while self.best.plan.processes > 1 and self._try(
            msgspec.structs.replace(self.best.plan, processes=self.best.plan.processes - 1)
        ):
            pass

    def _fewer(self, field: str) -> None:
        kept: frozenset[Any] | None = getattr(self.best.plan, field)
        if not kept:
            return
        size = max(1, len(kept) // 2)
        while size >= 1:
            for part in _parts(sorted(getattr(self.best.plan, field)), size):
                rest = getattr(self.best.plan, field) - set(part)
                if field == "faults":
                    self._try(msgspec.structs.replace(self.best.plan, faults=rest))
                elif rest:
                    self._with_messages(rest)
            size //= 2

    def _with_messages(self, messages: frozenset[int]) -> None:
        """A shorter workload has fewer occasions: what went wrong at one may have to go wrong at an earlier one."""
        shorter = msgspec.structs.replace(self.best.plan, messages=messages)
        if self._try(shorter, workload=True):
            return
        faults = shorter.faults or frozenset()
        for name, occasion in sorted(faults):
            for earlier in range(occasion - 1, max(0, occasion - NEAR - 1), -1):
                moved = faults - {(name, occasion)} | {(name, earlier)}
                if self._try(msgspec.structs.replace(shorter, faults=moved), workload=True):
                    return
        # What was in time where there was more to do may come too late, and so on
        for sizes in range(1, SIZES + 1) if faults else ():
            if self._try(msgspec.structs.replace(shorter, sizes=sizes), workload=True):
                return

    def _fewer_turns(self) -> None:
        low, high = 0, self.best.plan.turns or 0
        if high and self._try(msgspec.structs.replace(self.best.plan, turns=0)):
            return
        while high - low > max(1, high // 16):
            middle = (low + high) // 2
            if self._try(msgspec.structs.replace(self.best.plan, turns=middle)):
                high = middle
            else:
                low = middle


def _parts(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
