"""What came of a run: every promise, every fault, and how much was done."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from things_kit.testing.soak.checks import check, explained_duplicates
from things_kit.testing.soak.faults import FAULTS, Strike, seen_trouble
from things_kit.testing.soak.plan import GROUPS
from things_kit.testing.soak.records import read
from things_kit.testing.soak.story import Story


class FaultLine(msgspec.Struct, frozen=True):
    """One kind of fault in a run.

    Attributes:
        fault: Its name.
        times: How often it was done.
        seen: How often it had an effect that was seen; only these count.
        effect: One such effect.
        median: Seconds until every group had a success again, in half of the cases.
        worst: The same, at worst; below 0 where a group had none within a minute.
    """

    fault: str
    times: int
    seen: int
    effect: str
    median: float
    worst: float


class Verdict(msgspec.Struct, frozen=True):
    """What came of a run.

    Attributes:
        broken: What breaks each promise; an empty list where it was kept.
        faults: The faults, by kind.
        published: Messages that were confirmed.
        handled: Of each group, messages that it handled to the end.
        again: Of each group, those that came again because of a fault.
        dead: Dead letters that were seen, and brought back.
        seconds: How long messages were published.
        starved: The longest that a process had no turn on this machine, in seconds, though nobody had frozen it. If
            that is much, what is late is late because of it.
    """

    broken: Mapping[str, Sequence[str]]
    faults: Sequence[FaultLine]
    published: int
    handled: Mapping[str, int]
    again: Mapping[str, int]
    dead: int
    seconds: float
    starved: float

    @property
    def kept(self) -> bool:
        """Whether no promise was broken."""
        return not any(self.broken.values())


def judge(folder: Path) -> Verdict:
    """Read what the processes of a run have written down, and see whether what was promised was kept."""
    story = Story(read(folder))
    return Verdict(
        broken=check(story),
        faults=_faults(story),
        published=len(story.published),
        handled={
            group: sum(
                any(h.how == "done" for h in handlings) for handlings in story.handlings[group].values()
            )
            for group in GROUPS
        },
        again=explained_duplicates(story),
        dead=sum(len(letters) for letters in story.buried.values()),
        seconds=story.phases.get("finishing", story.entries[-1].at)
        - story.phases.get("going", story.entries[0].at),
        starved=starved(story),
    )


def effects(story: Story) -> dict[str, str]:
    """What was seen of each fault; empty where nothing was."""
    noted = {entry.id: entry.text for entry in story.of("seen")}
    found = {}
    for struck in story.struck:
        fault = FAULTS.get(struck.fault)
        see = seen_trouble if fault is None else fault.seen
        strike = Strike(struck.fault, struck.victim, struck.seconds)
        found[struck.id] = noted.get(struck.id) or see(story.entries, strike, (struck.began, struck.over))
    return found


def starved(story: Story) -> float:
    """The longest between two pulses of a process that nobody had frozen."""
    last: dict[str, float] = {}
    longest = 0.0
    for entry in story.of("pulse"):
        since = last.get(entry.by, entry.at)
        last[entry.by] = entry.at
        frozen = any(
            struck.befell(entry.by) and struck.began <= entry.at and struck.over >= since
            for struck in story.struck
        )
        longest = max(longest, 0.0 if frozen else entry.at - since)
    return longest


def _faults(story: Story) -> list[FaultLine]:
    recovered: dict[str, list[float]] = defaultdict(list)
    for entry in story.of("recovered"):
        recovered[entry.id].append(entry.figures["seconds"])
    seen = effects(story)
    kinds: dict[str, list[str]] = defaultdict(list)
    for struck in story.struck:
        kinds[struck.fault].append(struck.id)
    return [_line(fault, ids, seen, recovered) for fault, ids in sorted(kinds.items())]


def _line(
    fault: str, ids: Sequence[str], seen: Mapping[str, str], recovered: Mapping[str, Sequence[float]]
) -> FaultLine:
    effect = next((seen[id_] for id_ in ids if seen[id_]), "")
    times = [_last(recovered[id_]) for id_ in ids if id_ in recovered]
    worst = min(times) if any(time < 0 for time in times) else max(times, default=0.0)
    median = statistics.median(times) if times else 0.0
    return FaultLine(fault, len(ids), sum(bool(seen[id_]) for id_ in ids), effect, median, worst)


def _last(seconds: Sequence[float]) -> float:
    """When the last of the groups had recovered; -1 where one had not."""
    return -1.0 if any(second < 0 for second in seconds) else max(seconds)
