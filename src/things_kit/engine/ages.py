"""How old what a consumer holds is."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from things_kit.engine.clock import steady
from things_kit.engine.inbox import ConsumerInbox


def ages_of(topics: Sequence[str], inboxes: Iterable[ConsumerInbox]) -> dict[str, float]:
    """Of each topic for how many seconds the oldest message in hand has been published; 0 where none is."""
    now = datetime.fromtimestamp(steady(), UTC)
    oldest = dict.fromkeys(topics, now)
    for inbox in inboxes:
        for delivery in inbox.held:
            topic, published = delivery.message.topic, delivery.message.timestamp
            if published is not None and topic in oldest and published < oldest[topic]:
                oldest[topic] = published
    return {topic: (now - published).total_seconds() for topic, published in oldest.items()}
