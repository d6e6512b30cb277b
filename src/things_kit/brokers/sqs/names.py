"""What topics, groups, keys and ids are called at AWS.

A topic is called the same wherever SNS allows it. Other characters are written `_-HEX-`, so `orders.created` is
`orders_-2E-created`; so is an underscore in front of a hyphen, and thus no two names become the same. A group's queue
is `TOPIC_-_GROUP`, one without a name of its own `TOPIC_-e-NUMBER`. What is too long for a queue ends in a hash.
"""

import hashlib
import re
import uuid
from typing import Final

from things_kit.messaging.errors import ConfigError

FIFO: Final = ".fifo"
"""How the names of topics and queues end that keep an order."""

LONGEST_TOPIC: Final = 256
LONGEST_QUEUE: Final = 80
LONGEST_ID: Final = 128
"""Characters that AWS takes, the ending included."""

BETWEEN: Final = "_-_"
"""Stands between topic and group, and in no escaped name."""

HASHED: Final = "_-h-"
EPHEMERAL: Final = "_-e-"
"""In front of a hash, and of an ephemeral group's number: `h` and `e` are no digits of an escaped character, which are upper case."""

HASH_DIGITS: Final = 32

OURS: Final = "tk-"
"""How message groups and deduplication ids begin that are no keys and ids of messages."""

_ESCAPED: Final = re.compile(r"_-([0-9A-F]+)-")
_STRANGE: Final = re.compile(r"[^A-Za-z0-9_-]|_(?=-)")
_ID: Final = re.compile(r"[!-~]{1,128}")
_EPHEMERAL: Final = re.compile(rf"{EPHEMERAL}[0-9a-f]{{32}}({re.escape(FIFO)})?$")


def escaped(name: str) -> str:
    """A name in the characters that AWS takes; different for different names."""
    return _STRANGE.sub(lambda found: f"_-{ord(found[0]):X}-", name)


def unescaped(name: str) -> str:
    """What a name at AWS stands for."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), name)


def group_of(queue: str, topic: str) -> str:
    """The group whose queue this is; the queue's own name where that does not tell."""
    stem, ending = _stem(topic)
    mine = queue.removesuffix(ending).removeprefix(stem + BETWEEN)
    return unescaped(mine) if mine != queue.removesuffix(ending) else queue


def is_fifo(topic: str) -> bool:
    """Whether a topic keeps an order at the broker."""
    return topic.endswith(FIFO)


def _stem(topic: str) -> tuple[str, str]:
    """A topic's name without its ending, escaped, and the ending."""
    ending = FIFO if is_fifo(topic) else ""
    return escaped(topic.removesuffix(ending)), ending


def topic_name(topic: str) -> str:
    """A topic's name at SNS. Raises ConfigError if it cannot have one."""
    stem, ending = _stem(topic)
    if not stem or len(stem + ending) > LONGEST_TOPIC:
        raise ConfigError(
            f"SNS cannot have a topic {topic!r}: a name is up to {LONGEST_TOPIC} letters, digits, '-' and '_'; "
            "every other character takes the place of four or more"
        )
    return stem + ending


def only_queue_name(topic: str) -> str:
    """The name of the queue that is a topic by itself, without SNS. Raises ConfigError if it cannot have one."""
    stem, ending = _stem(topic)
    if not stem or len(stem + ending) > LONGEST_QUEUE:
        raise ConfigError(
            f"SQS cannot have a queue {topic!r}: a name is up to {LONGEST_QUEUE} letters, digits, '-' and '_'; "
            "every other character takes the place of four or more"
        )
    return stem + ending


def queue_name(topic: str, group: str) -> str:
    """The name of a group's queue. Raises ConfigError if the topic cannot be."""
    topic_name(topic)
    stem, ending = _stem(topic)
    first = "_-2D-" if group.startswith("-") else ""  # else it would look like a mark, behind BETWEEN
    whole = f"{stem}{BETWEEN}{first}{escaped(group[1:] if first else group)}"
    if len(whole) + len(ending) <= LONGEST_QUEUE:
        return whole + ending
    return _front(stem, HASHED, ending) + HASHED + _hash(whole) + ending


def ephemeral_queue_name(topic: str) -> str:
    """A name for the queue of a group without a name, that nobody else has."""
    topic_name(topic)
    stem, ending = _stem(topic)
    return _front(stem, EPHEMERAL, ending) + EPHEMERAL + uuid.uuid4().hex + ending


def _front(stem: str, mark: str, ending: str) -> str:
    return stem[: LONGEST_QUEUE - len(mark) - HASH_DIGITS - len(ending)]


def is_ephemeral(queue: str) -> bool:
    """Whether a queue is that of an ephemeral group."""
    return _EPHEMERAL.search(queue) is not None


def belongs(queue: str, topic: str) -> bool:
    """Whether a queue that is subscribed to a topic has a name that we give to the queues of its groups."""
    stem, ending = _stem(topic)
    fronts = (
        stem + BETWEEN,
        _front(stem, HASHED, ending) + HASHED,
        _front(stem, EPHEMERAL, ending) + EPHEMERAL,
    )
    return queue.endswith(ending) and queue.startswith(fronts)


def message_group(key: bytes | None, identity: str) -> str:
    """The message group of a key: the key itself where it can be. A message without a key has one of its own."""
    if key is None:
        return f"{OURS}free-{_hash(identity)}"
    text = key.decode("ascii", "replace")
    return text if _can_be_id(text) else f"{OURS}key-{hashlib.sha256(key).hexdigest()}"


def publish_id(publish: str) -> str:
    """The deduplication id of a publish, whatever its message is called."""
    return f"{OURS}publish-{publish}"


def copy_id(name: str) -> str:
    """The deduplication id of a copy, of whose name there is no other."""
    return f"{OURS}copy-{_hash(name)}"


def deduplication_id(identity: str, again: str | None) -> str:
    """The deduplication id of a message: its id where it can be.

    `again` is the receipt of the delivery in hand whose message is published once more: a dead letter or a replay is
    no duplicate, even within five minutes.
    """
    if again is not None:
        return f"{OURS}again-{_hash(f'{again} {identity}')}"
    return identity if _can_be_id(identity) else f"{OURS}id-{_hash(identity)}"


def _can_be_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None and not text.startswith(OURS)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]
