"""A soak: a broker is used as many do, all around it is broken by plan, and what was promised is checked afterwards.

    python -m things_kit.testing.soak --broker redis --minutes 15 --seed 7

Producers, members of three kinds of group, a bridge and a clerk who brings dead letters back are processes of their
own. Each writes down, before and after, what it does; a run is judged by these journals alone.

A driver of your own is soaked by a `Subject` of its own:

    subject = Subject(name="stone", url=f"stone://127.0.0.1:{relay.port}", server=server, relay=relay)
    await soak(subject, folder, minutes=15, seed=7)
    assert judge(folder).kept
"""

from things_kit.testing.soak.checks import PROMISES, check
from things_kit.testing.soak.faults import FAULTS, Fault, Step, Strike, steps
from things_kit.testing.soak.plan import Plan
from things_kit.testing.soak.records import Entry, Journal, read
from things_kit.testing.soak.story import Story
from things_kit.testing.soak.subjects import SUBJECTS, Subject
from things_kit.testing.soak.timeline import write_timeline
from things_kit.testing.soak.verdict import Verdict, judge
from things_kit.testing.soak.world import World, soak

__all__ = [
    "FAULTS", "PROMISES", "SUBJECTS", "Entry", "Fault", "Journal", "Plan", "Step", "Story", "Strike", "Subject",
    "Verdict", "World", "check", "judge", "read", "soak", "steps", "write_timeline",
]  # fmt: skip
