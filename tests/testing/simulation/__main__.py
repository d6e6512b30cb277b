"""Run all worlds through as many histories as are asked for: `python -m tests.testing.simulation [hash] [--histories N] [--first SEED]`.

It goes from world to world and broker to broker, a few seeds at a time, so that it can be ended at any moment. What breaks
a check is printed with the shortest history that does, and the next seeds follow.

With `hash` each world has its share of the histories, and a line that tells which they were: it is the same in each run
and on each Python.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Final, NamedTuple

from tests.testing.simulation import test_flow_worlds as flow
from tests.testing.simulation import test_pattern_worlds as patterns
from tests.testing.simulation import test_time_worlds as times
from tests.testing.simulation import test_worlds as engine
from things_kit.testing import Faults, SimulationFailed, World
from things_kit.testing.simulation.models import MODELS, model
from things_kit.testing.simulation.search import BATCH, Simulation

SLOW: Final = Faults.only("slow_handler", "clock_skew")


class Course(NamedTuple):
    """One world on one broker."""

    world: type[World]
    broker: str
    faults: Faults
    processes: int = 2

    @property
    def simulation(self) -> Simulation:
        """What runs it."""
        faults = self.faults.for_broker(self.broker, model(self.broker)[0].impossible)
        return Simulation(self.world, self.broker, self.processes, faults)

    def __str__(self) -> str:
        return f"{self.world.__name__} on {self.broker}"


def courses() -> Iterator[Course]:
    """Every world on every broker that it holds on."""
    everywhere: list[tuple[type[World], Faults]] = [(world, Faults.all()) for world in engine.WORLDS]
    everywhere += [(world, faults or Faults.all()) for world, _, faults in flow.EVERYWHERE]
    for broker in MODELS:
        yield from (Course(world, broker, faults) for world, faults in everywhere)
        if broker != "sqs":
            yield Course(engine.Ordered, broker, SLOW, processes=1)
            yield Course(engine.Deployed, broker, engine.Deployed.stops, processes=1)
    for broker in ("sqlite", "postgres"):
        yield Course(engine.Ordered, broker, Faults.all(), processes=3)
        yield Course(patterns.Relayed, broker, Faults.all())
    for broker in patterns.INBOXES:
        yield Course(patterns.Charged, broker, Faults.all())
        yield Course(patterns.ChargedTogether, broker, Faults.all())
    for broker in patterns.OUTSIDE:
        yield Course(patterns.Bridged, broker, Faults.all())
    yield Course(flow.InATable, "sqlite", flow.LIVING)
    yield Course(flow.Killed, "sqlite", Faults.all())
    for broker in times.NAMED:
        yield Course(times.Reminders, broker, Faults.all())
    for broker in MODELS:
        if broker != "sqs-fifo":
            yield Course(times.later(broker), broker, Faults.all())
    for broker in ("sqlite", "redis", "nats"):
        yield Course(times.Tick, broker, Faults.all())
    yield Course(times.OneByOne, "postgres", times.DEAD, processes=3)
    yield Course(times.ByTurns, "redis", times.DEAD, processes=3)


def search(histories: int, first: int) -> int:
    """From world to world; the exit status."""
    all_of_them = list(courses())
    began, done, failed, seed = time.monotonic(), 0, 0, first
    for number, course in enumerate(cycle(all_of_them)):
        if done >= histories:
            break
        if number and not number % len(all_of_them):
            seed += BATCH
            print(f"{done} histories in {time.monotonic() - began:.0f} s, {failed} failed", flush=True)
        try:
            done += course.simulation.search(range(seed, seed + BATCH), 1, ()).histories
        except SimulationFailed as error:
            done, failed = done + error.report.histories, failed + 1
            print(f"{course}: {error}\n", flush=True)
    print(f"{done} histories in {time.monotonic() - began:.0f} s, {failed} failed", flush=True)
    return 1 if failed else 0


def tell(histories: int, first: int) -> int:
    """A line for each world, from its first seed on: how many histories it had, and which."""
    all_of_them = list(courses())
    share = -(-histories // len(all_of_them))
    for course in all_of_them:
        hashes = [outcome.hash for outcome in course.simulation.histories(range(first, first + share))]
        told = hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]
        print(f"{course}: {len(hashes)} histories, {told}", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.testing.simulation")
    parser.add_argument("what", nargs="?", choices=("search", "hash"), default="search")
    parser.add_argument("--histories", type=int, default=200_000)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    asked = parser.parse_args()
    return (tell if asked.what == "hash" else search)(asked.histories, asked.first)


if __name__ == "__main__":
    sys.exit(main())
