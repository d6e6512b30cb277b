"""`simulate` and its search: runs a world through many histories, and shows the shortest that breaks it."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from things_kit.messaging.errors import ConfigError
from things_kit.testing.simulation import selection
from things_kit.testing.simulation.children import can_fork, in_child, in_children
from things_kit.testing.simulation.faults import Fault, Faults
from things_kit.testing.simulation.models import model
from things_kit.testing.simulation.plan import Plan
from things_kit.testing.simulation.remains import do_away_with
from things_kit.testing.simulation.report import Report, SimulationFailed
from things_kit.testing.simulation.world import World

if TYPE_CHECKING:  # pytest's plugin lives beside this, and is to be light
    from things_kit.testing.simulation.outcome import Outcome
    from things_kit.testing.simulation.run import Run

BATCH: Final = 25
"""Histories that one child process runs: what a crash left behind is kept until it ends."""


def simulate(
    world: Callable[[], World],
    *,
    seeds: int = 100,
    broker: str = "kafka",
    processes: int = 2,
    faults: Faults | None = None,
    workers: int = 1,
    sometimes: Iterable[str] = (),
) -> Report:
    """Run a world through `seeds` histories of the model of a broker, with everything going wrong that may.

    Args:
        world: A `World` subclass, or what makes one; called for each history.
        seeds: How many histories; each has its own seed, from 0.
        broker: Whose contract: "kafka", "rabbitmq", "nats", "redis", "sqs", "sqs-fifo", "pubsub", "servicebus",
            "sqlite" or "postgres".
        processes: How many processes consume.
        faults: What may go wrong; `Faults.all()` if nothing is said.
        workers: How many cores to use.
        sometimes: What `reached` must have been told in at least one history.

    Raises:
        SimulationFailed: A check failed, or a point of `sometimes` was never reached. It has the report.
        ConfigError: An argument is wrong, or a named fault is none that this broker can have.
    """
    from things_kit.testing.simulation.fences import check_installed  # noqa: PLC0415

    check_installed()
    for name, value in {"seeds": seeds, "processes": processes, "workers": workers}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a whole number from 1; it is {value!r}")
    if not callable(world):
        raise ConfigError(f"world must be a World class, or a function that makes one; it is {world!r}")
    if isinstance(world, type) and not (issubclass(world, World) and world is not World):
        raise ConfigError(f"world must be a World class, or a function that makes one; it is {world!r}")
    points = _names(sometimes)
    chosen = Faults.all() if faults is None else faults
    if not isinstance(chosen, Faults):
        raise ConfigError(f"faults must be Faults; it is {chosen!r}")
    traits, _ = model(broker)
    asked = chosen.for_broker(broker, traits.impossible)
    return Simulation(world, broker, processes, asked).search(range(seeds), workers, points)


def _names(sometimes: object) -> tuple[str, ...]:
    found = (
        tuple(sometimes)
        if isinstance(sometimes, Iterable) and not isinstance(sometimes, str | bytes)
        else (None,)
    )
    if not all(isinstance(name, str) for name in found):
        raise ConfigError(f"sometimes must be a list of names; it is {sometimes!r}")
    return found


class Simulation:
    """Runs the histories of one world."""

    def __init__(
        self, world: Callable[[], World], broker: str, processes: int, faults: dict[str, Fault]
    ) -> None:
        self._world = world
        self._broker = broker
        self._processes = processes
        self._faults = faults
        self._kept: list[Run] = []

    def run(self, plan: Plan) -> "Outcome":
        """One history, in this process."""
        from things_kit.testing.simulation.run import Run  # noqa: PLC0415

        if len(self._kept) >= BATCH:
            self._let_go()
        run = Run(self._world, self._broker, plan, self._faults)
        self._kept.append(run)  # with all that its crashes have abandoned, which must not go on
        return run.execute()

    def _let_go(self) -> None:
        """Of histories that were run in this process; those of a child go with it."""
        if not can_fork():
            do_away_with(self._kept)

    def search(self, seeds: Sequence[int], workers: int, sometimes: Sequence[str]) -> Report:
        """Run the histories of these seeds; raise for the first that fails."""
        try:
            return self._search(seeds, workers, sometimes)
        finally:
            self._let_go()

    def _search(self, seeds: Sequence[int], workers: int, sometimes: Sequence[str]) -> Report:
        only = selection.seed()
        happened: Counter[str] = Counter()
        reached: set[str] = set()
        count, last = 0, None
        for outcome in self.histories(seeds if only is None else [only], workers):
            count, last = count + 1, outcome
            happened.update(name for name, _ in outcome.happened)
            reached |= outcome.reached
            if outcome.check is not None:
                raise SimulationFailed(self._failure(outcome, count, happened))
        assert last is not None
        report = self._report(last, count, happened)
        missing = [name for name in sometimes if name not in reached]
        if missing and only is None:
            raise SimulationFailed(
                report, f"never reached in {count} histories: {', '.join(missing)}\n{report}"
            )
        return report

    def histories(self, seeds: Sequence[int], workers: int = 1) -> "Iterator[Outcome]":
        """What came of each of these seeds, in their order; of a batch in which one failed, none that follows it."""
        plans = [Plan(seed=seed, processes=self._processes) for seed in seeds]
        batches = [plans[start : start + BATCH] for start in range(0, len(plans), BATCH)]
        for outcomes in in_children(self._run_batch, batches, workers):
            yield from outcomes

    def _run_batch(self, plans: Sequence[Plan]) -> "list[Outcome]":
        """Up to the first that fails; only that one and the last have their rows, which are long."""
        outcomes: list[Outcome] = []
        for plan in plans:
            outcome = self.run(plan)
            if outcomes:
                outcomes[-1].rows = []
            outcomes.append(outcome)
            if outcome.check is not None:
                break
        return outcomes

    def _failure(self, failing: "Outcome", count: int, happened: Counter[str]) -> Report:
        from things_kit.testing.simulation.shrink import Shrinker  # noqa: PLC0415

        again = in_child(lambda: self.run(failing.plan))
        if again.hash != failing.hash or not again.same_failure(failing):
            failing.check = "repeating"
            failing.text = (
                f"not deterministic: seed {failing.plan.seed} gave two histories ({failing.hash}, {again.hash}). "
                "Something outside of the simulation decides: a set's order, an address, a clock of C code.\n"
                f"{failing.text}"
            )
            return self._report(failing, count, happened)
        shortest = in_child(lambda: Shrinker(self.run, failing).shrink())
        return self._report(shortest, count, happened)

    def _report(self, outcome: "Outcome", count: int, happened: Counter[str]) -> Report:
        seed = outcome.plan.seed
        return Report(
            broker=self._broker,
            histories=count,
            seed=seed,
            check=outcome.check,
            text=outcome.text,
            replay=shlex.join(["pytest", f"--things-kit-seed={seed}", *filter(None, [selection.test()])]),
            hash=outcome.hash,
            history=outcome.rows,
            happened={name: happened[name] for name in self._faults if happened[name]},
            never_fired=[name for name in self._faults if not happened[name]],
            seconds=outcome.seconds,
        )
