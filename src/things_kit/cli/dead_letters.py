"""What the `dlq` commands know of a dead letter: which one it is, where it came from and what was wrong with it."""

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from things_kit.cli.rows import Bytes, bytes_in_row, rfc3339
from things_kit.engine.broker import Broker
from things_kit.engine.dead_letter import is_dead_letter
from things_kit.engine.replay import browse
from things_kit.messaging import names
from things_kit.messaging.message import Message

VARYING: Final = re.compile(
    r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b|\b(?=[a-z]*\d)[0-9a-z]{8,}\b|\d+(?:[.,:]\d+)*",
    re.IGNORECASE,
)
"""What differs between texts of one error: ids and numbers."""


def looking_at(broker: Broker, topic: str) -> aclosing[AsyncGenerator[Message, None]]:
    """All messages that are kept as dead letters in a topic, while inside; then they are all given back."""
    return aclosing(browse(broker, topic, create=False))


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

    @property
    def died(self) -> datetime:
        """When it became one; those that do not say come first."""
        try:
            return datetime.fromisoformat(self.timestamp or "").astimezone(UTC)
        except ValueError:
            return datetime.min.replace(tzinfo=UTC)


class Oldest:
    """The oldest of many dead letters, in the order in which they became some, without holding all of them."""

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        self._limit = limit
        self._letters: list[DeadLetter] = []

    def add(self, letter: DeadLetter) -> None:
        """One more."""
        self._letters.append(letter)
        if len(self._letters) >= 2 * self._limit + 1000:
            self._cut()

    def all(self) -> list[DeadLetter]:
        """Those within the limit."""
        self._cut()
        return self._letters

    def _cut(self) -> None:
        self._letters.sort(key=lambda letter: letter.died)
        self.dropped += max(0, len(self._letters) - self._limit)
        del self._letters[self._limit :]


class Kind(msgspec.Struct):
    """Dead letters with the same error, but for numbers and ids in its text."""

    error_type: str
    error: str
    count: int = 0
    first: str | None = None
    last: str | None = None
    example: str | None = None

    def add(self, letter: DeadLetter) -> None:
        """One more."""
        self.count += 1
        if letter.timestamp is not None:
            self.first = min(self.first or letter.timestamp, letter.timestamp)
            self.last = max(self.last or letter.timestamp, letter.timestamp)
        self.example = self.example or letter.id


class Kinds:
    """Dead letters, counted by what was wrong with them."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], Kind] = {}

    def add(self, letter: DeadLetter) -> None:
        """One more."""
        name = letter.error_type or "", VARYING.sub("…", letter.error or "")
        self._kinds.setdefault(name, Kind(*name)).add(letter)

    def all(self) -> list[Kind]:
        """The most frequent first."""
        return sorted(self._kinds.values(), key=lambda kind: (-kind.count, kind.error_type, kind.error))


class Selection:
    """Which messages a command is for: all dead letters, or those of these ids or of this type of error.

    Attributes:
        missing: The ids that no dead letter had so far.
        others: How many messages were no dead letters, and so not meant.
        seen: How many were.
    """

    def __init__(
        self, ids: Sequence[str] | None = None, error_type: str | None = None, *, every: bool = False
    ) -> None:
        self.missing = set(ids or ())
        self.others = self.seen = 0
        self.every = every
        self._ids = frozenset(ids or ())
        self._error_type = error_type

    def takes(self, message: Message) -> bool:
        """Whether a message is meant."""
        if not self.every and not is_dead_letter(message):
            self.others += 1
            return False
        self.seen += 1
        if self._ids:
            self.missing.discard(message.id or "")
            if message.id not in self._ids:
                return False
        if self._error_type is None:
            return True
        name = message.headers.get(names.ERROR_TYPE, "")
        return self._error_type in {name, name.rpartition(".")[2]}
