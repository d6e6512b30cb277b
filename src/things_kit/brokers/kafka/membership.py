"""Why a member of a group has no partition: because others have them all, or because something is wrong."""

from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import ConsumerGroupState, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

ANSWER: Final = 5.0
"""Seconds that the broker may take to answer."""

REBALANCING: Final = frozenset({
    ConsumerGroupState.PREPARING_REBALANCING, ConsumerGroupState.COMPLETING_REBALANCING,
})  # fmt: skip
MISSING: Final = frozenset({ConsumerGroupState.DEAD, ConsumerGroupState.UNKNOWN})

Look = Callable[[str], str | None]
"""Given a member's id: what is wrong with its having no partition, as a sentence; None if nothing is."""


def look(admin: AdminClient, topic: str, group: str, member: str) -> str | None:
    """What is wrong with this member's having no partition of the topic; None where others have all: it stands by.

    Says nothing either where the broker does not answer, or does not describe the group: that of another protocol
    than the classic one, or to a user without the ACL.
    """
    asked: Any = admin
    try:
        described = asked.describe_consumer_groups([group], request_timeout=ANSWER)[group].result(2 * ANSWER)
        found = asked.describe_topics(TopicCollection([topic]), request_timeout=ANSWER)[topic]
        partitions = {each.id for each in found.result(2 * ANSWER).partitions}
    except (KafkaException, TimeoutError):
        return None
    if described.state in MISSING:
        return None
    if described.state in REBALANCING:
        return "it has no partition: its group is rebalancing, and a member does not let go of what it has"
    if member not in {each.member_id for each in described.members}:
        return "it has no partition: it is not in its group any more"
    assignments = [each.assignment.topic_partitions for each in described.members if each.assignment]
    free = partitions - {each.partition for some in assignments for each in some if each.topic == topic}
    if free:
        return f"it has no partition, although {len(free)} of {len(partitions)} have nobody: the group's members disagree"
    return None
