"""What flows through every broker."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

RESERVED_PREFIX: Final = "tk-"
"""Header names that begin so belong to the drivers: handlers never see them, `publish` refuses them."""


class Message(msgspec.Struct, frozen=True, gc=False):  # nothing it holds refers back to it
    """One message, as it was published or as it arrived.

    Every field but `partition`, `offset` and `attempt` survives the trip through every broker unchanged.

    Attributes:
        topic: The topic it is published to, or came from.
        value: The payload, any bytes, also none.
        key: Messages of one key keep their order; None leaves the message free of order.
        headers: Names and values in any script; names that begin with `tk-` are refused by publish.
        partition: Set by brokers that have partitions.
        offset: Position in the topic (partition), where the broker has one.
        timestamp: When it was published, aware, UTC; set by publish where None.
        id: Set by publish where None; the same through redelivery, retry, dead letter and replay.
        attempt: Which handling attempt this is, from 1.
    """

    topic: str
    value: bytes
    key: bytes | None = None
    headers: Mapping[str, str] = {}  # msgspec gives every message a mapping of its own
    partition: int | None = None
    offset: int | None = None
    timestamp: datetime | None = None
    id: str | None = None
    attempt: int = 1

    def replace(self, **changes: Any) -> "Message":
        """A copy with the named fields changed. Raises TypeError for a field that a message has not."""
        return msgspec.structs.replace(self, **changes)
