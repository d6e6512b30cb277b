"""What must be true of every run: each promise is a function of its story, and names what breaks it."""

import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import filterfalse, pairwise
from typing import Final

from things_kit.testing.soak.order import at_once, out_of_order, settled
from things_kit.testing.soak.plan import (
    BEYOND,
    BRIDGE,
    DRAIN,
    FAR,
    FATAL,
    GROUPS,
    ORDERED,
    PLANNED,
    RESULTS,
    Planted,
    fate_of,
)
from things_kit.testing.soak.story import NEVER, Findings, Handling, Life, Story

RECOVERS_WITHIN: Final = 60.0
STANDS_STILL: Final = 60.0
"""Seconds without a message after which a member stands still, if its group had so many meanwhile:"""

MANY: Final = 200

GROWTH: Final[Mapping[str, float]] = {"tasks": 3, "threads": 4, "files": 6}
"""How many more a process may have at rest after the run than before."""

MEGABYTES: Final = 40.0
OF_AGE: Final = 180.0
"""Seconds that a process must have lived for its memory to be judged."""

COMPLAINTS: Final = (
    "Traceback",
    "never awaited",
    "never retrieved",
    "was destroyed",
    "ResourceWarning",
    "unclosed",
)
"""What no process may have on its standard error, and the library not in its log."""


Check = Callable[[Story], Findings]


def lost(story: Story) -> Findings:
    """Every confirmed message was handled to the end by every group."""
    for group in GROUPS:
        handled = story.handlings[group]
        for id_ in filterfalse(story.dropped, story.published):
            ways = [handling.how for handling in handled.get(id_, ())]
            if "done" not in ways:
                dead = " and a dead letter" if story.buried[group].get(id_) else ""
                what = f"was only {', '.join(way or 'begun' for way in ways)}" if ways else "was never begun"
                yield f"{group}: {id_} was confirmed and {what}{dead}"


def duplicates(story: Story) -> Findings:
    """What was handled to the end comes again only where a fault explains it."""
    for group, _, before, handling in _repeated(story):
        if not _explained(story, before, handling):
            was = "done" if before.how == "done" else "still at it"
            yield (
                f"{group}: {handling.id} came to {handling.by} though {before.by} was {was}, "
                f"{handling.began - before.began:.1f} s after it began there"
            )


def explained_duplicates(story: Story) -> Mapping[str, int]:
    """How many of each group came again because of a fault."""
    return Counter(group for group, _, before, now in _repeated(story) if _explained(story, before, now))


def _repeated(story: Story) -> Iterator[tuple[str, str, Handling, Handling]]:
    """Handlings that began though the message was done, or in another handler."""
    for group in GROUPS:
        for id_, handlings in story.handlings[group].items():
            for number, handling in enumerate(handlings):
                for before in handlings[:number]:
                    if before.how == "done" or before.ended > handling.began:
                        yield group, id_, before, handling
                        break


def _explained(story: Story, before: Handling, handling: Handling) -> bool:
    carriers = [life for life in story.lives if handling.group == FAR and life.startswith("carrier")]
    since, processes = before.began, {before.by, handling.by, *carriers}
    if handling.group == RESULTS:
        made = story.handlings[ORDERED].get(handling.id, [])
        if sum(each.how == "done" for each in made) > 1:
            return True  # each handling has its result; whether there was a cause is asked of the handlings
        since, processes = (
            min(each.began for each in (*made, before)),
            {*processes, *(each.by for each in made)},
        )
    if story.buried[handling.group].get(handling.id):
        # Who failed while it was frozen buries the message a second time, and both dead letters are brought back
        everywhere = story.handlings[handling.group][handling.id]
        since, processes = everywhere[0].began, {each.by for each in everywhere}
    if story.cause(since, handling.began, *processes) is not None:
        return True
    if story.whole_group and before.ended - before.began > DRAIN and story.changes(since, handling.began):
        return True  # a partition that moves waits for its handlers no longer than `drain_timeout`
    confirmed = story.published.get(handling.id)
    asked = story.asked.get(handling.id, before.began)
    until = max(before.began, confirmed.at) if confirmed is not None else before.began
    return story.cause(asked, until, handling.id.partition("/")[0]) is not None


def dead_without_cause(story: Story) -> Findings:
    """A message becomes a dead letter only if its handler would not have it, or its process died of it."""
    for group, letters in story.buried.items():
        for id_, entries in letters.items():
            fate, handlings = fate_of(id_, group), story.handlings[group].get(id_, [])
            for error in {entry.text.rpartition(".")[2] for entry in entries}:
                if error == "ProcessDied":
                    died = [handling for handling in handlings if not handling.how]
                    fine = (
                        bool(died)
                        and story.cause(died[0].began, NEVER, *(each.by for each in died)) is not None
                    )
                else:
                    expected = "Reject" if fate == "rejected" else Planted.__name__
                    fine = fate in FATAL and error == expected and any(h.how == "failed" for h in handlings)
                if not fine:
                    yield f"{group}: {id_} is a dead letter of {error}, though its handler was to do {fate!r}"


def jumping_attempts(story: Story) -> Findings:
    """`Message.attempt` counts what was handled: it neither jumps nor goes back unless a process or the broker was lost."""
    for group in GROUPS:
        for id_, handlings in story.handlings[group].items():
            first = handlings[0]
            if first.attempt > 1 and not _counted(story, group, story.asked.get(id_, 0.0), first):
                yield f"{group}: {id_} began with attempt {first.attempt}"
            for number, (before, handling) in enumerate(pairwise(handlings), 1):
                earlier = handlings[:number]
                jumps = handling.attempt > before.attempt + 1 and not _goes_on(story, earlier, handling)
                if jumps and not _counted(story, group, before.began, handling):
                    yield f"{group}: {id_} came with attempt {handling.attempt} after {before.attempt}"
                if _goes_back(before, handling) and not _explained(story, before, handling):
                    yield f"{group}: {id_} came with attempt {handling.attempt} after {before.attempt} had failed"


def _counted(story: Story, group: str, since: float, handling: Handling) -> bool:
    """Whether it may have been handed out in this time without being handled."""
    if story.counts_given_back and story.changes(since, handling.began):
        return True
    return story.cause(since, handling.began, *_members(story, group)) is not None


def _goes_on(story: Story, earlier: Sequence[Handling], handling: Handling) -> bool:
    """Whether it is the next attempt after a failure from which nothing has gone on: a fault may leave two of a message, which take turns.

    What a fault has brought again has gone on from no failure of its own.
    """
    failed = sum(each.how == "failed" and each.attempt == handling.attempt - 1 for each in earlier)
    same = [each for each in earlier if each.attempt == handling.attempt]
    members = _members(story, handling.group)
    again = sum(story.cause(one.began, other.began, *members) is not None for one, other in pairwise(same))
    return failed > len(same) - again


def _goes_back(before: Handling, handling: Handling) -> bool:
    """Whether a failure was not counted. After the last one a dead letter was brought back, which begins anew."""
    again = before.how == "failed" and before.by == handling.by and settled(before) == NEVER
    return again and handling.attempt <= before.attempt


def _members(story: Story, group: str) -> list[str]:
    role = "carrier" if group in {FAR, BRIDGE} else group
    return [name for name in story.lives if name.startswith(role)]


def spoiled(story: Story) -> Findings:
    """Values arrive as they were published."""
    for entry in story.of("spoiled"):
        yield f"{entry.group}: {entry.id} came to {entry.by} with another value"


def renamed(story: Story) -> Findings:
    """The result of a message has the same id however often it is published."""
    for id_, names in story.results.items():
        if len(names) > 1:
            yield f"the result of {id_} came under {len(names)} ids: {', '.join(sorted(names))}"


def lagging(story: Story) -> Findings:
    """When all is handled, nothing lags."""
    last: dict[str, float] = {}
    for entry in story.of("lag"):
        if entry.at >= story.phases.get("finishing", 0.0):
            last[entry.group] = entry.figures["lag"]
    for group, lag in last.items():
        if lag:
            yield f"{group}: a lag of {lag:.0f} is left"


def not_recovered(story: Story) -> Findings:
    """After each fault every group has a success within a minute."""
    names = {struck.id: f"{struck.fault} {struck.victim}".strip() for struck in story.struck}
    for entry in story.of("recovered"):
        seconds = entry.figures["seconds"]
        if not 0 <= seconds <= RECOVERS_WITHIN:
            yield f"{entry.group}: no success within {RECOVERS_WITHIN:.0f} s after {names.get(entry.id, entry.id)}"


def standing_still(story: Story) -> Findings:
    """No member of a group gets nothing while the others have work."""
    for group in (ORDERED, "free"):
        begun: dict[str, list[float]] = defaultdict(list)
        for handlings in story.handlings[group].values():
            for handling in handlings:
                begun[handling.by].append(handling.began)
        everything = sorted(at for moments in begun.values() for at in moments)
        for name in _members(story, group):
            life = story.lives[name]
            if life.ready is None:
                continue
            moments = [
                life.ready,
                *sorted(begun.get(name, [])),
                life.told or life.ended or story.entries[-1].at,
            ]
            for one, next_ in pairwise(moments):
                others = bisect.bisect(everything, next_) - bisect.bisect(everything, one)
                if next_ - one - story.hindered(one, next_) > STANDS_STILL and others > MANY:
                    yield f"{name} got nothing for {next_ - one:.0f} s, in which the group began {others} messages"


def growing(story: Story) -> Findings:
    """At rest after the run a process has no more tasks, threads and files than at rest before, and not much more memory."""
    before = _least(story, "rest before", "going")
    after = _least(story, "rest after", "ending")
    usual: dict[str, Mapping[str, float]] = {}
    for name, figures in before.items():
        usual.setdefault(name.partition("-")[0], figures)
    for name, figures in after.items():
        was = before.get(name) or usual.get(name.partition("-")[0], figures)
        for what, more in GROWTH.items():
            if figures.get(what, 0) > was.get(what, 0) + more:
                yield f"{name} has {figures[what]:.0f} {what} at rest, {was[what]:.0f} before"
    yield from _growing_memory(story, after)


def _growing_memory(story: Story, after: Mapping[str, Mapping[str, float]]) -> Findings:
    """Against what a process had when a third of its life was over."""
    sizes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry in story.of("pulse"):
        if entry.by in after and "megabytes" in entry.figures:
            sizes[entry.by].append((entry.at, entry.figures["megabytes"]))
    for name, pulses in sizes.items():
        began, ended = pulses[0][0], pulses[-1][0]
        if ended - began >= OF_AGE:
            was = max(size for at, size in pulses if at <= began + (ended - began) / 3)
            now = min(size for at, size in pulses if at >= ended - 5)
            if now > was + MEGABYTES:
                yield f"{name} has {now:.0f} MB at the end, {was:.0f} MB after a third of its life"


def _least(story: Story, start: str, end: str) -> Mapping[str, Mapping[str, float]]:
    """The least of each figure of each process between two phases."""
    least: dict[str, dict[str, float]] = {}
    since, until = story.phases.get(start, NEVER), story.phases.get(end, NEVER)
    for entry in story.of("pulse"):
        if since <= entry.at <= until:
            found = least.setdefault(entry.by, dict(entry.figures))
            for what, figure in entry.figures.items():
                found[what] = min(found.get(what, figure), figure)
    return least


def complaining(story: Story) -> Findings:
    """No error that nobody knows of: no traceback but of handlers that were to fail, nothing forgotten."""
    seen: set[str] = set()
    excused = {life.name for life in story.lives.values() if _is_in_vain(story, life)}
    for entry in story.of("said"):
        planned = any(words in entry.text for words in PLANNED) or entry.id in excused
        if any(words in entry.text for words in COMPLAINTS) and not planned:
            text = f"{entry.text.splitlines()[0]} ... {entry.text.splitlines()[-1]}"
            if text not in seen:
                seen.add(text)
                yield f"{entry.id or entry.by}: {text}"


def late_to_end(story: Story) -> Findings:
    """A process that is told to end does so in time."""
    for life in story.lives.values():
        if life.told is not None and life.ended is not None:
            took = life.ended - life.told
            if life.killed or took > DRAIN + BEYOND:
                yield f"{life.name} took {took:.1f} s to end; {DRAIN + BEYOND:.0f} s are promised"


def ended_by_itself(story: Story) -> Findings:
    """No process ends unless it is told to, and each ends well; but one may fail to start while the broker is away."""
    for life in story.lives.values():
        if life.ended is None or life.killed:
            continue
        if _is_in_vain(story, life):
            continue
        if life.told is None:
            yield f"{life.name} ended by itself with exit code {life.code}"
        elif life.code:
            yield f"{life.name} ended with exit code {life.code}"


def _is_in_vain(story: Story, life: Life) -> bool:
    """Whether it could not start, as the broker was away."""
    if life.ended is None or life.ready is not None or life.told is not None or life.code != 1:
        return False
    return story.cause(life.started, life.ended, life.name) is not None


PROMISES: Final[Mapping[str, Check]] = {
    "nothing confirmed is lost": lost,
    "keys keep their order": out_of_order,
    "no two of a key at once": at_once,
    "nothing comes again without a cause": duplicates,
    "dead letters have a cause": dead_without_cause,
    "attempts neither jump nor go back": jumping_attempts,
    "values arrive unchanged": spoiled,
    "results keep their id": renamed,
    "lag returns to 0": lagging,
    f"each group recovers within {RECOVERS_WITHIN:.0f} s": not_recovered,
    "no member stands still": standing_still,
    "no process grows": growing,
    "no error is left over": complaining,
    "told to end, processes do so in time": late_to_end,
    "no process ends by itself": ended_by_itself,
}


def check(story: Story) -> dict[str, list[str]]:
    """What breaks each promise; nothing where it is kept."""
    return {promise: list(find(story)) for promise, find in PROMISES.items()}
