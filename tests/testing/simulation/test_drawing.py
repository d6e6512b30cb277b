"""What is drawn from a seed, and what is taken away from it again until the history is as short as it gets."""

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.testing.simulation.test_simulate import Shop
from things_kit import Message
from things_kit.testing import Fault, Faults, reached, simulate
from things_kit.testing.simulation.children import in_children
from things_kit.testing.simulation.faults import DEFAULTS
from things_kit.testing.simulation.outcome import Outcome
from things_kit.testing.simulation.plan import Chance, Plan
from things_kit.testing.simulation.shrink import Shrinker

EVERY = Fault(probability=1.0, budget=100)


def drawn(chance: Chance) -> list[Any]:
    """Some of everything but of crashes."""
    return [(chance.turn(9), chance.between(0, 1), chance.strikes("outage")) for _ in range(50)]


def test_one_more_draw_of_one_kind_changes_no_other() -> None:
    faults = {"crash": EVERY, "outage": Fault(probability=0.5, budget=100)}
    one, other = (Chance(Plan(seed=1, processes=2), faults) for _ in range(2))
    other.stream("workload").random()
    other.strikes("crash")
    assert drawn(one) == drawn(other)


def test_each_seed_leaves_out_some_faults_and_each_fault_is_in_some() -> None:
    mixes = []
    for seed in range(60):
        chance = Chance(Plan(seed=seed, processes=2), dict.fromkeys(DEFAULTS, EVERY))
        mixes.append(frozenset(name for name in DEFAULTS if chance.strikes(name)))
    counts = Counter(name for mix in mixes for name in mix)
    assert all(0 < counts[name] < len(mixes) for name in DEFAULTS)
    assert len(set(mixes)) > 30


def test_a_fault_that_is_alone_is_never_left_out() -> None:
    assert all(Chance(Plan(seed=seed, processes=2), {"crash": EVERY}).strikes("crash") for seed in range(60))


def failing_if(broken: Callable[[Plan], bool]) -> Callable[[Plan], Outcome]:
    """Histories of ten messages, in which three things go wrong, and forty turns are drawn."""

    def run(plan: Plan) -> Outcome:
        happened = [("crash", 2), ("outage", 1), ("redelivery", 4)]
        full = Plan(
            seed=plan.seed,
            processes=plan.processes,
            faults=frozenset(happened) if plan.faults is None else plan.faults,
            messages=frozenset(range(10)) if plan.messages is None else plan.messages,
            turns=40 if plan.turns is None else plan.turns,
        )
        check = "always" if broken(full) else None
        return Outcome(
            plan=plan, check=check, happened=sorted(full.faults or ()), messages=10, turns=40, steps=100
        )

    return run


def shortest(broken: Callable[[Plan], bool]) -> Plan:
    run = failing_if(broken)
    return Shrinker(run, run(Plan(seed=1, processes=4))).shrink().plan


def test_a_history_is_shortened_to_what_it_takes() -> None:
    plan = shortest(
        lambda plan: (
            plan.processes >= 2
            and ("crash", 2) in (plan.faults or ())
            and 3 in (plan.messages or ())
            and (plan.turns or 0) >= 17
        )
    )
    assert plan.processes == 2
    assert plan.faults == frozenset({("crash", 2)})
    assert plan.messages == frozenset({3})
    assert 17 <= (plan.turns or 0) <= 17 + 40 // 16


def test_what_fails_in_order_is_shown_in_order() -> None:
    assert shortest(lambda _: True).turns == 0


def test_a_shorter_workload_counts_only_if_it_passes_where_nothing_goes_wrong() -> None:
    def broken(plan: Plan) -> bool:
        incomplete = 0 not in (
            plan.messages or ()
        )  # a workload that is none, such as a payment without its order
        return incomplete or ("crash", 2) in (plan.faults or ())

    assert 0 in (shortest(broken).messages or ())


def test_workers_run_at_the_same_time() -> None:
    together = multiprocessing.Barrier(2)
    assert sorted(in_children(lambda _: together.wait(60), [None, None], 2)) == [0, 1]


class Deployed(Shop):
    """Handlers that take their time while their process is told to stop."""

    async def setup(self) -> None:
        self.begun = Counter[str]()
        self.ended = Counter[str]()

    async def handle(self, message: Message) -> None:
        self.begun[message.id or ""] += 1
        await asyncio.sleep(1)
        self.ended[message.id or ""] += 1

    def eventually(self) -> None:
        self.history.nothing_lost()
        assert self.begun == self.ended == Counter(self.history.published("orders").ids)
        if any("is told to stop" in row.what for row in self.history.rows):
            reached("stopped")


@pytest.mark.parametrize("broker", ["kafka", "sqlite", "sqs"])
def test_a_stop_drains(broker: str) -> None:
    simulate(Deployed, seeds=15, broker=broker, faults=Faults.only("stop"), sometimes=["stopped"])
