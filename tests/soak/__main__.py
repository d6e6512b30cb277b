"""Plant each fault into a short soak, and see whether the soak names it: `python -m tests.soak [NAME ...]`."""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from things_kit.testing.soak import SUBJECTS, Step, Strike, judge, soak

LOST = "nothing confirmed is lost"
ORDER = "keys keep their order"
AGAIN = "nothing comes again without a cause"
GROWS = "no process grows"
STILL = "no member stands still"
ENDS = "no process ends by itself"
NAMED = "results keep their id"
RECOVERS = "each group recovers within 60 s"

KILLS = [
    Step(8.0, Strike("kill", who), burst=who == "free-2") for who in ("ordered-2", "free-2", "ordered-2")
]
CUTS = [Step(4.0, Strike("all cut")) for _ in range(6)]
RESTARTS = [Step(6.0, Strike("restart", "batch-1"), burst=True) for _ in range(4)]
QUIET = [Step(20.0) for _ in range(3)]
LOADED = [Step(12.0, burst=True) for _ in range(5)]
FROZEN = [Step(5.0, Strike("freeze", "ordered-2", 7.0), burst=True) for _ in range(3)]
DELETED = [Step(6.0, Strike("topic deleted", seconds=1.0))]
GROWN = [Step(6.0, Strike("partitions added")), Step(15.0, burst=True)]
LONG = [Step(20.0) for _ in range(6)]


class Sabotage(NamedTuple):
    """One planted fault, where it is planted, what else is done meanwhile, and which promise must be found broken."""

    name: str
    broker: str
    script: Sequence[Step]
    promise: str


ALL = (
    Sabotage("acknowledge_early", "sqlite", KILLS, LOST),
    Sabotage("drop_some", "sqlite", LOADED, LOST),
    Sabotage("hang_one_worker", "sqlite", QUIET, LOST),
    Sabotage("forget_leases", "redis", QUIET, AGAIN),
    Sabotage("release_in_the_wrong_order", "nats", RESTARTS, ORDER),
    Sabotage("reorder_after_a_retry", "sqlite", QUIET, ORDER),
    Sabotage("lose_the_last_batch", "sqlite", LOADED, LOST),
    Sabotage("resend_twice", "sqlite", QUIET, AGAIN),
    Sabotage("leak_a_task", "redis", CUTS, GROWS),
    Sabotage("die_silently", "sqlite", LONG, STILL),
    Sabotage("end_silently", "sqlite", QUIET, ENDS),
    Sabotage("lose_results", "sqlite", QUIET, LOST),
    Sabotage("name_results_anew", "sqlite", FROZEN, NAMED),
    Sabotage("never_return_to_a_topic", "redis", DELETED, RECOVERS),
    Sabotage("ignore_new_partitions", "kafka", GROWN, LOST),
)


async def run(sabotage: Sabotage, folder: Path) -> None:
    async with SUBJECTS[sabotage.broker](folder) as subject:
        sabotaged = msgspec.structs.replace(subject, prepare=f"tests.soak.sabotage:{sabotage.name}")
        await soak(sabotaged, folder, script=sabotage.script, rate=10.0)


def main(names: Sequence[str]) -> int:
    missed = 0
    for sabotage in ALL:
        if names and sabotage.name not in names:
            continue
        folder = Path(tempfile.mkdtemp(prefix=f"sabotage-{sabotage.name}-"))
        asyncio.run(run(sabotage, folder))
        broken = {promise: findings for promise, findings in judge(folder).broken.items() if findings}
        named = sabotage.promise in broken
        missed += not named
        print(f"{'named ' if named else 'MISSED'} {sabotage.name} on {sabotage.broker}", flush=True)
        for promise, findings in broken.items():
            print(f"       {promise}: {len(findings)}, such as {findings[0]}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
