"""What must be true of every run: each promise is a function of its story, and names what breaks it."""

import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from things_kit.testing.soak.plan import (
    ATTEMPTS,
    BATCH,
    BEYOND,
    BRIDGE,
    DRAIN,
    FAR,
    FATAL,
    GROUPS,
    ORDERED,
    PLANNED,
    Planted,
    fate_of,
)
from things_kit.testing.soak.story import NEVER, Handling, Story

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


Findings = Iterator[str]
Check = Callable[[Story], Findings]


def lost(story: Story) -> Findings:
    """Every confirmed message was handled to the end by every group."""
    for group in GROUPS:
        handled = story.handlings[group]
        for id_ in story.published:
            ways = [handling.how for handling in handled.get(id_, ())]
            if "done" not in ways:
                dead = " and a dead letter" if story.buried[group].get(id_) else ""
                what = f"was only {', '.join(way or 'begun' for way in ways)}" if ways else "was never begun"
                yield f"{group}: {id_} was confirmed and {what}{dead}"


def out_of_order(story: Story) -> Findings:
    """The messages of a key were handled in the order in which they were published, as far as this broker promises it."""
    for group in (ORDERED, BATCH, FAR):
        for key, handlings in story.keys(group).items():
            if not story.across or group == FAR:
                yield from _out_of_order_within(story, group, key, handlings)
            elif group == BATCH:
                yield from _out_of_order_across(story, group, key, handlings, _begun)
            else:
                yield from _out_of_order_across(story, group, key, handlings, _settled)


def _begun(handling: Handling) -> float:
    return handling.began


def _settled(handling: Handling) -> float:
    """When the later ones of its key may begin: when it is done, or has failed for good."""
    rejected = handling.text == "Reject" or handling.attempt >= ATTEMPTS
    return handling.ended if handling.how == "done" or (handling.how == "failed" and rejected) else NEVER


def _out_of_order_across(
    story: Story, group: str, key: str, handlings: list[Handling], free: Callable[[Handling], float]
) -> Findings:
    """No message begins before all earlier ones of its key have let it."""
    frees: dict[str, float] = {}
    first: dict[str, Handling] = {}
    for handling in handlings:
        frees[handling.id] = min(frees.get(handling.id, NEVER), free(handling))
        first.setdefault(handling.id, handling)
    expected = sorted(
        (first[id_] for id_ in first if id_ in story.published and not _died(story, group, id_)),
        key=lambda handling: handling.place,
    )
    for earlier, later in pairwise(expected):
        if later.began < frees[earlier.id]:
            yield f"{group}: {key}: {later.id} began before {earlier.id} was {'begun' if free is _begun else 'settled'}"


def _out_of_order_within(story: Story, group: str, key: str, handlings: list[Handling]) -> Findings:
    """Within a process, what was published earlier began earlier, unless members came and went meanwhile.

    Where a group has one member, and what it gives back keeps its place, its lives are one.
    """
    one = group == BATCH and story.gives_back_in_order
    highest: dict[str, Handling] = {}
    seen: set[str] = set()
    for handling in handlings:
        who = BATCH if one else handling.by
        before = highest.get(who)
        again = handling.id in seen or handling.id not in story.published
        seen.add(handling.id)
        if again:
            continue
        if before is None or before.place < handling.place:
            highest[who] = handling
        elif not _moved(story, handling, before, stops=not one):
            yield f"{group}: {key}: {handling.by} began {handling.id} after {before.by} had begun {before.id}"


def _moved(story: Story, handling: Handling, before: Handling, *, stops: bool) -> bool:
    """Whether something explains that a message came later than it should."""
    since = story.asked.get(handling.id, before.began)
    if stops:
        return story.changes(since, handling.began)
    return story.cause(since, handling.began, handling.by, before.by) is not None


def _died(story: Story, group: str, id_: str) -> bool:
    return any(entry.text.endswith("ProcessDied") for entry in story.buried[group].get(id_, ()))


def at_once(story: Story) -> Findings:
    """No two messages of a key are handled beside each other."""
    for key, handlings in story.keys(ORDERED).items():
        last: dict[str, Handling] = {}
        for handling in handlings:
            where = "" if story.across else handling.by
            before = last.get(where)
            if before is not None and before.id != handling.id and before.ended > handling.began:
                end = min(before.ended, handling.ended)
                if story.cause(before.began, end, before.by, handling.by) is None:
                    yield (
                        f"{ORDERED}: {key}: {handling.by} began {handling.id} while {before.by} was at {before.id}"
                    )
            if before is None or handling.ended >= before.ended:
                last[where] = handling


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
                jumps = handling.attempt > before.attempt + 1 and not _goes_on(handlings[:number], handling)
                if jumps and not _counted(story, group, before.began, handling):
                    yield f"{group}: {id_} came with attempt {handling.attempt} after {before.attempt}"
                if _goes_back(before, handling) and not _explained(story, before, handling):
                    yield f"{group}: {id_} came with attempt {handling.attempt} after {before.attempt} had failed"


def _counted(story: Story, group: str, since: float, handling: Handling) -> bool:
    """Whether it may have been handed out in this time without being handled."""
    if story.counts_given_back and story.changes(since, handling.began):
        return True
    return story.cause(since, handling.began, *_members(story, group)) is not None


def _goes_on(earlier: Sequence[Handling], handling: Handling) -> bool:
    """Whether it is the next attempt after a failure from which nothing has gone on: a fault may leave two of a message, which take turns."""
    failed = sum(each.how == "failed" and each.attempt == handling.attempt - 1 for each in earlier)
    return failed > sum(each.attempt == handling.attempt for each in earlier)


def _goes_back(before: Handling, handling: Handling) -> bool:
    """Whether a failure was not counted. After the last one a dead letter was brought back, which begins anew."""
    again = before.how == "failed" and before.by == handling.by and _settled(before) == NEVER
    return again and handling.attempt <= before.attempt


def _members(story: Story, group: str) -> list[str]:
    role = "carrier" if group in {FAR, BRIDGE} else group
    return [name for name in story.lives if name.startswith(role)]


def spoiled(story: Story) -> Findings:
    """Values arrive as they were published."""
    for entry in story.of("spoiled"):
        yield f"{entry.group}: {entry.id} came to {entry.by} with another value"


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
                if next_ - one > STANDS_STILL and others > MANY:
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
    for entry in story.of("said"):
        planned = any(words in entry.text for words in PLANNED)
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
        in_vain = life.ready is None and life.code == 1
        if life.told is None and in_vain and story.cause(life.started, life.ended, life.name):
            continue
        if life.told is None:
            yield f"{life.name} ended by itself with exit code {life.code}"
        elif life.code:
            yield f"{life.name} ended with exit code {life.code}"


PROMISES: Final[Mapping[str, Check]] = {
    "nothing confirmed is lost": lost,
    "keys keep their order": out_of_order,
    "no two of a key at once": at_once,
    "nothing comes again without a cause": duplicates,
    "dead letters have a cause": dead_without_cause,
    "attempts neither jump nor go back": jumping_attempts,
    "values arrive unchanged": spoiled,
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
