"""Names of topics and groups as resources of Pub/Sub, so that no two are the same there.

A resource's id has 3 to 255 letters, digits and `-_.~+%`, and begins with a letter, but not with `goog`
(cloud.google.com/pubsub/docs/pubsub-basics#resource_names). So:

* What an id cannot have is percent-encoded, `%` and `+` as well: `a/b` is `a%2Fb`.
* A name that cannot begin an id so, or is too short, has `tk~` before it: `7up` is `tk~7up`.
* A group's subscription is the topic's id and the encoded group, with `+` between them: `orders+billing`.
"""

import re
from typing import Final
from urllib.parse import quote, unquote

from things_kit.messaging.errors import ConfigError

LONGEST: Final = 255
PREFIX: Final = "tk~"
BETWEEN: Final = "+"

_PLAIN: Final = re.compile(r"(?!goog|tk~)[A-Za-z].{2,}", re.DOTALL | re.IGNORECASE)


def topic_id(topic: str) -> str:
    """Raises ConfigError if the name is too long."""
    encoded = quote(topic, safe="")
    if not _PLAIN.match(encoded):
        encoded = PREFIX + encoded
    return _checked(encoded, f"a topic {topic!r}")


def topic_of(identity: str) -> str:
    """The name of the topic that has this id."""
    return unquote(identity.removeprefix(PREFIX))


def subscription_id(topic: str, group: str) -> str:
    """Raises ConfigError if the names are too long together."""
    encoded = topic_id(topic) + BETWEEN + quote(group, safe="")
    return _checked(encoded, f"a group {group!r} of the topic {topic!r}")


def group_of(topic: str, identity: str) -> str:
    """The group whose subscription of the topic has this id; of a foreign one its id."""
    ours = topic_id(topic) + BETWEEN
    return unquote(identity.removeprefix(ours)) if identity.startswith(ours) else identity


def _checked(identity: str, what: str) -> str:
    if len(identity) > LONGEST:
        raise ConfigError(
            f"Pub/Sub cannot have {what}: {identity[:40]!r}... has {len(identity)} characters, and {LONGEST} are the most"
        )
    return identity
