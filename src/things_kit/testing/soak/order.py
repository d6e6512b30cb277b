"""Whether the messages of a key were handled in their order, and one after another."""

from collections.abc import Callable
from itertools import pairwise

from things_kit.testing.soak.plan import ATTEMPTS, BATCH, FAR, FATAL, ORDERED, RESULTS, fate_of
from things_kit.testing.soak.story import NEVER, Findings, Handling, Story


def out_of_order(story: Story) -> Findings:
    """The messages of a key were handled in the order in which they were published, as far as this broker promises it."""
    for group in (ORDERED, BATCH, FAR, *([RESULTS] if story.across else [])):
        for key, handlings in story.keys(group).items():
            if not story.across or group == FAR:
                yield from _out_of_order_within(story, group, key, handlings)
            elif group in {BATCH, RESULTS}:
                yield from _out_of_order_across(story, group, key, handlings, _begun)
            else:
                yield from _out_of_order_across(story, group, key, handlings, settled)


def _begun(handling: Handling) -> float:
    return handling.began


def settled(handling: Handling) -> float:
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
        (first[id_] for id_ in first if id_ in story.published and not _has_left(story, group, id_)),
        key=lambda handling: handling.place,
    )
    for earlier, later in pairwise(expected):
        if later.began < frees[earlier.id] and not story.apart(earlier.id, later.id):
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
        elif not _moved(story, handling, before, stops=not one) and not story.apart(before.id, handling.id):
            yield f"{group}: {key}: {handling.by} began {handling.id} after {before.by} had begun {before.id}"


def _moved(story: Story, handling: Handling, before: Handling, *, stops: bool) -> bool:
    """Whether something explains that a message came later than it should."""
    since = story.asked.get(handling.id, before.began)
    if stops:
        return story.changes(since, handling.began)
    return story.cause(since, handling.began, handling.by, before.by) is not None


def _has_left(story: Story, group: str, id_: str) -> bool:
    """Whether a message has lost its place in its key: by its dead letter, or by a fault that has taken it away."""
    if story.dropped(id_) or (group == RESULTS and fate_of(id_, ORDERED) in FATAL):
        return True
    letters = story.buried[ORDERED if group == RESULTS else group].get(id_, ())
    return any(entry.text.endswith("ProcessDied") for entry in letters)


def at_once(story: Story) -> Findings:
    """No two messages of a key are handled beside each other."""
    for key, handlings in story.keys(ORDERED).items():
        last: dict[str, Handling] = {}
        for handling in handlings:
            where = "" if story.across else handling.by
            before = last.get(where)
            if before is not None and before.id != handling.id and before.ended > handling.began:
                end = min(before.ended, handling.ended)
                apart = story.apart(
                    *sorted((before.id, handling.id), key=lambda id_: story.asked.get(id_, 0.0))
                )
                if not apart and story.cause(before.began, end, before.by, handling.by) is None:
                    yield (
                        f"{ORDERED}: {key}: {handling.by} began {handling.id} while {before.by} was at {before.id}"
                    )
            if before is None or handling.ended >= before.ended:
                last[where] = handling
