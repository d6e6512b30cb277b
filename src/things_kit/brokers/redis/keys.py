"""Names: of streams, which are the topics', and of what a group keeps beside its stream, in the same slot of a cluster."""

import functools
import os
import secrets
import socket
from itertools import count
from typing import Final

from redis.crc import key_slot

from things_kit.messaging.errors import ConfigError

DELAYED: Final = "tk-delayed:"
"""How the key of a group's delayed messages begins."""

SUSPECTS: Final = "tk-suspects:"
"""How the key of a group's suspects begins."""

DUE: Final = "tk-due:"
"""How the key begins of the times at which a topic's scheduled messages are due."""

SCHEDULED: Final = "tk-scheduled:"
"""How the key of a topic's scheduled messages begins."""

CONSUMER: Final = "things-kit-"
"""How the names of our consumers begin; those of others are left alone."""


def check_topic(topic: str) -> None:
    """Raise ConfigError for a topic whose key would be one of ours."""
    for ours in (DELAYED, SUSPECTS, DUE, SCHEDULED):
        if topic.startswith(ours):
            raise ConfigError(
                f"a topic's name must not begin with {ours!r}, which the driver keeps for itself"
            )


@functools.lru_cache(maxsize=1024)
def delayed_key(topic: str, group: str) -> str:
    """The sorted set of what a group has put back. The length keeps `a:b` + `c` apart from `a` + `b:c`."""
    return f"{DELAYED}{len(topic)}:{_tagged(topic)}:{group}"


def suspects_key(topic: str, group: str) -> str:
    """The hash of the marks of what may kill its processes: an entry's ID, and with which attempt it was marked."""
    return SUSPECTS + delayed_key(topic, group).removeprefix(DELAYED)


@functools.lru_cache(maxsize=1024)
def topic_keys(topic: str) -> tuple[str, str, str]:
    """All that a topic has: its stream, and the sorted set and the hash of what comes later."""
    rest = f"{len(topic)}:{_tagged(topic)}"
    return topic, DUE + rest, SCHEDULED + rest


def group_keys(topic: str, group: str) -> tuple[str, str, str, str, str]:
    """All that a group has: its stream, what it keeps beside that, and what comes later."""
    return topic, delayed_key(topic, group), suspects_key(topic, group), *topic_keys(topic)[1:]


def _tagged(topic: str) -> str:
    """The topic so written that a key that contains it has the topic's own slot, whatever stands behind it.

    Redis hashes what is between the first `{` and the next `}`, if that is anything, else the whole key.
    """
    opening = topic.find("{")
    if opening >= 0 and topic.find("}", opening) > opening + 1:
        return topic
    if "}" not in topic:
        return f"{{{topic}}}"
    slot = key_slot(topic.encode())
    tag = next(number for number in count() if key_slot(b"%d" % number) == slot)
    return f"{{{tag}}}{topic}"


def consumer_name() -> str:
    """A name that no other consumer has had: who it is shows in XINFO CONSUMERS."""
    return f"{CONSUMER}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
