"""What the journal says of messages, done again."""

import heapq
from typing import Any

from things_kit.testing.servers.servicebus_emulator.entities import Envelope, Namespace


def play(namespace: Namespace, record: list[Any]) -> bool:
    """Whether the record was of a message, and is done."""
    what, path, *rest = record
    if what in {"scheduled", "due"}:
        _play_topic(namespace, what, path, rest)
        return True
    if what not in {"put", "removed", "counted"}:
        return False
    queue = namespace.queues.get(path)
    if queue is None:
        return True
    if what == "put":
        number, session, now, content = rest
        queue.put(content, session, now, number)
    elif (entry := queue.entries.get(rest[0])) is not None:
        if what == "removed":
            queue.remove(entry)
        else:
            entry.count = rest[1]
    return True


def _play_topic(namespace: Namespace, what: str, path: str, rest: list[Any]) -> None:
    topic = namespace.topics.get(path)
    if topic is None:
        return
    if what == "scheduled":
        content, about = rest
        namespace.publish(path, content, Envelope(*about), 0.0, replayed=True)
    else:
        topic.scheduled = [each for each in topic.scheduled if each[2][1].as_list() != rest[0]]
        heapq.heapify(topic.scheduled)
