"""What the `dlq` commands know of a dead letter: which one it is, where it came from and what was wrong with it."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from things_kit.cli.rows import Bytes, bytes_in_row, rfc3339
from things_kit.engine.broker import Broker
from things_kit.engine.replay import browse
from things_kit.messaging import names
from things_kit.messaging.message import Message


def looking_at(
    broker: Broker, topic: str, limit: int | None = None
) -> aclosing[AsyncGenerator[Message, None]]:
    """The dead letters of a topic, oldest first, while inside; then they are all given back."""
    return aclosing(browse(broker, topic, limit=limit))


class DeadLetter(msgspec.Struct, frozen=True):
    """A dead letter in short; a field is None where the message does not say."""

    id: str | None
    original_topic: str | None
    group: str | None
    attempts: int | str | None
    error_type: str | None
    error: str | None
    timestamp: str | None
    key: Bytes | None

    @classmethod
    def of(cls, message: Message) -> "DeadLetter":
        """The short form of a message from a dead-letter topic."""
        headers = message.headers
        attempts = headers.get(names.ATTEMPTS)
        published = None if message.timestamp is None else rfc3339(message.timestamp)
        return cls(
            id=message.id,
            original_topic=headers.get(names.ORIGINAL_TOPIC),
            group=headers.get(names.CONSUMER_GROUP),
            attempts=int(attempts) if attempts is not None and attempts.isdecimal() else attempts,
            error_type=headers.get(names.ERROR_TYPE),
            error=headers.get(names.ERROR),
            timestamp=headers.get(names.TIMESTAMP, published),
            key=None if message.key is None else bytes_in_row(message.key),
        )

    def row(self) -> dict[str, Any]:
        """As a row of JSON."""
        return msgspec.structs.asdict(self)


class Selection:
    """Which dead letters a command is for: all, or those of these ids or of this type of error.

    Attributes:
        missing: The ids that no dead letter had so far.
    """

    def __init__(self, ids: Sequence[str] | None = None, error_type: str | None = None) -> None:
        self.missing = set(ids or ())
        self._ids = frozenset(ids or ())
        self._error_type = error_type

    @property
    def where(self) -> Callable[[Message], bool] | None:
        """What replay and purge ask of each dead letter; None for all of them."""
        return self.takes if self._ids or self._error_type is not None else None

    def takes(self, message: Message) -> bool:
        """Whether a dead letter is meant."""
        if self._ids:
            self.missing.discard(message.id or "")
            if message.id not in self._ids:
                return False
        if self._error_type is None:
            return True
        name = message.headers.get(names.ERROR_TYPE, "")
        return self._error_type in {name, name.rpartition(".")[2]}
