"""A group as it is: how far it has come, and whether somebody receives what waits."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

import msgspec
from confluent_kafka import ConsumerGroupState

from things_kit.brokers.kafka.doctor.phrases import partitions
from things_kit.engine.diagnosis import Finding
from things_kit.engine.offsets import decode

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

    @property
    def subject(self) -> str:
        """What its findings are about."""
        return f"group {self.name}"


def judge_places(group: Group, topic: str, places: Sequence[Place]) -> Iterator[Finding]:
    """Whether what the group has yet to handle is still there."""
    if lost := sum(place.lost for place in places):
        numbers = [place.partition for place in places if place.lost]
        what = f"Up to {lost:,} messages of {topic} were deleted before the group handled them ({partitions(numbers)})."
        remedy = (
            "Raise retention.ms, or run consumers more often; who has them still must publish them again."
        )
        yield Finding("error", group.subject, what, remedy)
    beyond = [p.partition for p in places if p.committed is not None and p.committed > p.end]
    if beyond:
        what = f"Its committed offset lies beyond the end of {topic} ({partitions(beyond)}): the topic was made anew, or has lost messages."
        remedy = "Its consumers will begin at the earliest message; to choose another place, use `kafka-consumer-groups.sh --reset-offsets`."
        yield Finding("warning", group.subject, what, remedy)


def judge_members(group: Group, topic: str, places: Sequence[Place]) -> Iterator[Finding]:
    """Whether somebody receives what waits."""
    waiting = sum(place.waiting for place in places)
    if group.state in MISSING:
        where = f" It will begin at the earliest of the {waiting:,} messages in {topic}." if waiting else ""
        remedy = "Check the spelling, and that its consumers were started; offsets of a group without members are forgotten after offsets.retention.minutes."
        yield Finding("warning", group.subject, f"There is no such group.{where}", remedy)
    elif not group.members and waiting:
        what = f"It is stuck: {waiting:,} messages of {topic} wait, and it has no member."
        yield Finding("error", group.subject, what, "Start its consumers.")
    elif not group.members:
        yield Finding("ok", group.subject, "It has no member, and nothing waits for it.")
    elif group.state not in REBALANCING:
        yield from _judge_assignment(group, topic, places)


def _judge_assignment(group: Group, topic: str, places: Sequence[Place]) -> Iterator[Finding]:
    taken = frozenset(chain.from_iterable(member.partitions for member in group.members))
    idle = sum(member.idle for member in group.members)
    if stuck := [place.partition for place in places if place.waiting and place.partition not in taken]:
        what = f"It is stuck: none of its {len(group.members)} members receives {partitions(stuck)} of {topic}, where messages wait."
        remedy = "Start a consumer of this topic in the group, and give all its consumers the same options."
        yield Finding("error", group.subject, what, remedy)
    if idle:
        what = f"{idle} of its {len(group.members)} members have no partition, and nothing to do."
        yield Finding("warning", group.subject, what, "Stop them, or add partitions.")
    elif not stuck:
        yield Finding(
            "ok", group.subject, f"Its members are {len(group.members)}, and what waits is received."
        )


def judge_rebalance(group: Group, lasted: float) -> Finding:
    """A group that does not come to rest."""
    what = (
        f"It has been rebalancing for more than {lasted:.0f} s: a member does not let go of its partitions."
    )
    remedy = "Look for a member that hangs or keeps restarting; one that is gone is struck off after session_timeout."
    return Finding("warning", group.subject, what, remedy)
