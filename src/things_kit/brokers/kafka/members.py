"""A group as it is: how far it has come, and whether somebody receives what waits."""

from collections.abc import Sequence
from itertools import chain
from typing import Final

import msgspec
from confluent_kafka import ConsumerGroupState

from things_kit.engine.facts import Blocked, Facts, GroupFacts
from things_kit.engine.offsets import decode
from things_kit.engine.phrases import some

REBALANCING: Final = frozenset({
    ConsumerGroupState.PREPARING_REBALANCING, ConsumerGroupState.COMPLETING_REBALANCING,
})  # fmt: skip
MISSING: Final = frozenset({ConsumerGroupState.DEAD, ConsumerGroupState.UNKNOWN})


class Place(msgspec.Struct, frozen=True):
    """How far a group is in a partition: `committed` is None before its first commit."""

    partition: int
    start: int
    end: int
    committed: int | None = None
    metadata: str | None = None

    @property
    def waiting(self) -> int:
        """Offsets that are not finished and still there."""
        return self._unfinished(self.start, self.end)

    @property
    def lost(self) -> int:
        """Offsets that were not finished and are deleted."""
        return 0 if self.committed is None else self._unfinished(0, self.start)

    def _unfinished(self, start: int, end: int) -> int:
        begin = max(start, self.committed if self.committed is not None else self.start)
        finished = decode(begin if self.committed is None else self.committed, self.metadata)
        done = (max(0, min(stop, end) - max(first, begin)) for first, stop in finished)
        return max(0, end - begin - sum(done))


class Member(msgspec.Struct, frozen=True):
    """A member of a group, and which partitions of the topic it has; `idle` if it has none of any topic."""

    partitions: frozenset[int]
    idle: bool


class Group(msgspec.Struct, frozen=True):
    """A group's state at the broker."""

    name: str
    state: ConsumerGroupState
    members: Sequence[Member]


def add_group(facts: Facts, group: Group, topic: str, places: Sequence[Place]) -> None:
    """A group, and whether what it has yet to handle is still there and received."""
    facts.groups.append(
        GroupFacts(
            name=group.name,
            topic=topic,
            there=group.state not in MISSING,
            ready=sum(place.waiting for place in places),
            consumers=len(group.members),
            blocked=_unreceived(group, topic, places),
        )
    )
    subject = f"group {group.name}"
    if lost := sum(place.lost for place in places):
        where = some([place.partition for place in places if place.lost])
        what = f"Up to {lost:,} messages of {topic} were deleted before the group handled them (partition {where})."
        remedy = (
            "Raise retention.ms, or run consumers more often; who has them still must publish them again."
        )
        facts.find("error", subject, what, remedy)
    beyond = [each.partition for each in places if each.committed is not None and each.committed > each.end]
    if beyond:
        what = f"Its committed offset lies beyond the end of {topic} (partition {some(beyond)}): the topic was made anew, or has lost messages."
        remedy = "Its consumers will begin at the earliest message; to choose another place, use `kafka-consumer-groups.sh --reset-offsets`."
        facts.find("warning", subject, what, remedy)
    idle = sum(member.idle for member in group.members)
    if idle and group.state not in REBALANCING:
        what = f"{idle} of its {len(group.members)} members have no partition, and nothing to do."
        facts.find("warning", subject, what, "Stop them, or add partitions.")


def _unreceived(group: Group, topic: str, places: Sequence[Place]) -> Sequence[Blocked]:
    if not group.members or group.state in REBALANCING:
        return ()
    taken = frozenset(chain.from_iterable(member.partitions for member in group.members))
    stuck = [place.partition for place in places if place.waiting and place.partition not in taken]
    if not stuck:
        return ()
    what = f"It is stuck: none of its {len(group.members)} members receives partition {some(stuck)} of {topic}, where messages wait."
    remedy = "Start a consumer of this topic in the group, and give all its consumers the same options."
    return [Blocked(what, remedy)]
