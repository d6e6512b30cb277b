"""Header names that the kit gives a meaning to."""

from collections.abc import Mapping
from typing import Final

CONTENT_TYPE: Final = "content-type"
"""How the value is encoded; JSON where it is missing."""

CONTENT_ENCODING: Final = "content-encoding"
"""What was done to the value, in the order in which it was done."""

ENCRYPTED_TOPIC: Final = "encrypted-topic"
"""The topic that a value was encrypted for."""

SCHEMA_VERSION: Final = "schema-version"
"""Which version of its topic's contract a message was written by; 1 where it is missing."""

REPLAY_GROUP: Final = "replay-group"
"""The one consumer group that a replayed message is for."""

ORIGINAL_TOPIC: Final = "original-topic"
ORIGINAL_PARTITION: Final = "original-partition"
ORIGINAL_OFFSET: Final = "original-offset"
ORIGINAL_TIMESTAMP: Final = "original-timestamp"
ORIGINAL_GROUP: Final = "original-consumer-group"
CONSUMER_GROUP: Final = "consumer-group"
ATTEMPTS: Final = "attempts"
ERROR_TYPE: Final = "error-type"
ERROR: Final = "error"
TIMESTAMP: Final = "timestamp"

REPLY_TO: Final = "reply-to"
"""The topic that waits for the reply to a request; with `correlation-id` it makes a message a request."""

CORRELATION_ID: Final = "correlation-id"
"""Which request a reply belongs to."""

DEADLINE: Final = "deadline"
"""Until when a request is worth answering, in RFC 3339."""

OF_A_REQUEST: Final = frozenset({REPLY_TO, CORRELATION_ID, DEADLINE})
"""What makes a message a request."""

ORIGINAL_HEADER: Final = "original-header-"
"""Prefix under which a dead letter keeps a user's header whose name it needs itself."""

DEAD_LETTER_MARK: Final = "tk-dead-letter"
"""All that says of a dead letter that it is one, where the broker's limit of size leaves no room for more."""

DEAD_LETTER_GROUP: Final = "dead-letters"
"""The group that keeps dead letters on a broker of queues; replay and the command line read as it."""


def in_any_case(headers: Mapping[str, str], name: str) -> str | None:
    """A header whose name the standards read in any case, such as `content-type`; as it is written here goes first."""
    if not headers:
        return None
    text = headers.get(name)
    if text is None:
        wanted, length = name.lower(), len(name)
        for other, found in headers.items():
            if len(other) == length and other.lower() == wanted:
                return found
    return text


def is_request(headers: Mapping[str, str]) -> bool:
    """Whether somebody waits for what the handler of a message with these headers returns."""
    return REPLY_TO in headers and CORRELATION_ID in headers
