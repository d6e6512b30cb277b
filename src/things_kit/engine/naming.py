"""What can be the name of a topic or group at all; a driver refuses further what its broker cannot have."""

import re
from typing import Final

from things_kit.messaging.errors import ConfigError
from things_kit.messaging.names import DEAD_LETTER_GROUP

EPHEMERAL: Final = "ephemeral-"
"""How the engine's names of groups begin that vanish with their consumer."""

REPLIES: Final = "things-kit-replies-"
"""How the names of inboxes for replies begin; then comes until when they may be used, in hexadecimal seconds since 1970."""


LONGEST: Final = 2000
"""Bytes of a name in UTF-8: what a database indexes it with has no room for much more."""


def is_inbox(topic: str) -> bool:
    """Whether a topic is an inbox for replies, by its name, which may have a prefix: `?topic_prefix=`."""
    return REPLIES in topic


def inbox_expired(topic: str, now: float) -> bool:
    """Whether this is the inbox of a process that cannot use it any more."""
    if not topic.startswith(REPLIES):
        return False
    ends = topic.removeprefix(REPLIES).partition("-")[0]
    return all(digit in "0123456789abcdef" for digit in ends) and int(ends or "0", 16) < now


def check_name(what: str, name: object) -> None:
    """Raise ConfigError unless this is text, not empty and not too long, that UTF-8 can carry."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{what} must be a name; it is {name!r}")
    size = len(name)
    if not name.isascii():
        try:
            size = len(name.encode())
        except UnicodeEncodeError as error:
            raise ConfigError(f"{what} is not text that UTF-8 can carry: {name!r}") from error
    if size > LONGEST:
        raise ConfigError(f"{what} has {size} bytes, and may have {LONGEST}: {name[:40]!r}…")


def is_dead_letter_group(name: str) -> bool:
    """Whether a group is the one that keeps dead letters, by its name, which may have a prefix: `?topic_prefix=`."""
    return name.endswith(DEAD_LETTER_GROUP)


def looks_like_pattern(name: str) -> bool:
    """Whether a name would stand for others somewhere: it has a `*`, or `#` or `>` as a whole segment."""
    return "*" in name or any(segment in {"#", ">"} for segment in re.split(r"[./]", name))
