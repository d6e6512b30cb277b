"""What topics and groups are called in Service Bus, which has fewer characters for names."""

import hashlib
import re
from typing import Final

from things_kit.engine.envelope import as_text

TOPIC_LENGTH: Final = 260
GROUP_LENGTH: Final = 50

_PLAIN: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
"""A name that Service Bus takes as it is. It takes slashes too, but they mean folders, and subscriptions."""

_HASHED: Final = re.compile(r".*\.tk-[0-9a-f]{20}", re.IGNORECASE)
"""What a name looks like that had to be replaced; a plain one that looks so is replaced as well."""

_FOREIGN: Final = re.compile(r"[^A-Za-z0-9._-]+")

OURS: Final = b"tk-"
"""How sessions begin that are no keys."""

SESSION_LENGTH: Final = 128
FREE_SESSIONS: Final = 16
"""Sessions among which messages without a key are spread."""


def entity_of(topic: str) -> str:
    """The name of a topic's entity: its own where that can be, else its readable part and a hash of all of it."""
    return _name(topic, TOPIC_LENGTH)


def subscription_of(group: str) -> str:
    """The name of a group's subscription, as for a topic, but of at most 50 characters."""
    return _name(group, GROUP_LENGTH)


def _name(name: str, length: int) -> str:
    if len(name) <= length and _PLAIN.fullmatch(name) and not _HASHED.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:20]
    readable = _FOREIGN.sub("-", name)[: length - 24].strip("._-") or "x"
    return f"{readable}.tk-{digest}"


def session_of(key: bytes | None, number: int) -> str:
    """The session of a key; of a message without one, any of a few by its number."""
    if key is None:
        return f"tk-free-{number % FREE_SESSIONS}"
    text = as_text(key)
    if text and len(text) <= SESSION_LENGTH and text.isprintable() and not key.startswith(OURS):
        return text
    return f"tk-{hashlib.sha256(key).hexdigest()}"
