"""What the embedded broker does with its tables: every operation, as SQL, inside the caller's transaction.

Each operation takes a handful of statements however many messages it is about, and no statement yields rows one by
one. Python's sqlite3 lets go of the interpreter's lock at every row, and a busy event loop gives it back late: the
same thousand messages, read row by row beside a loop that runs callbacks of 0.1 ms, took 13 seconds instead of 2 ms.
So lists of offsets go in as JSON, and messages come out as columns, joined end to end.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias

import msgspec

from things_kit.brokers.sqlite.schema import OFFSET_BITS, filled
from things_kit.engine.driver import ConnectionLost, Subscription
from things_kit.messaging.policy import Ordering

Row: TypeAlias = tuple[bytes | None, bytes, str | None, str | None, str | None, int, str | None]
"""key, value, headers as JSON, id, ISO 8601 timestamp, seconds since 1970 when it was stored, target group."""

INSERT_ROWS: Final = 256

from_json = msgspec.json.Decoder(list[int]).decode

to_json = msgspec.json.encode

LANE: Final[dict[Ordering, str]] = {"key": "m.key", "partition": "1", "none": "NULL"}


class Member(msgspec.Struct, eq=False):
    """One receiver: its row, its group, and how many messages it holds, which only the event loop counts."""

    id: int
    group: int
    topic: int
    subscription: Subscription
    held: int = 0
    closed: bool = False

    @property
    def base(self) -> int:
        """The `seq` of its topic's offset 0."""
        return self.topic << OFFSET_BITS


class Store:
    """The connection, inside the caller's transaction. `touched` collects the topics where something new is to be had.

    Statements say `{s}_message` and so on: the tables of all schemas are alike but for that prefix.
    """

    def __init__(self, connection: sqlite3.Connection, *, schema: str, lease: float, retain: float) -> None:
        self.connection = connection
        self.schema = schema
        self._filled: dict[str, str] = {}
        self.touched: set[int] = set()
        self.lease = lease
        self.retain = retain
        self.swept_to: dict[int, int] = {}

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run a statement about this schema's tables."""
        text = self._filled.get(statement)
        if text is None:
            text = self._filled[statement] = filled(statement, self.schema)
        return self.connection.execute(text, parameters)

    def run(self, statement: str, parameters: Any = ()) -> int:
        """Returns how many rows were changed."""
        return self.execute(statement, parameters).rowcount

    def row(self, statement: str, parameters: Any = ()) -> Any:
        """The first row."""
        return self.execute(statement, parameters).fetchone()


def append(store: Store, batches: Mapping[str, Sequence[Row]]) -> set[str]:
    """Append messages to their topics; returns the topics that do not exist, whose messages were left out."""
    unknown = set()
    for name, rows in batches.items():
        topic = store.row("SELECT id, next FROM {s}_topic WHERE name = ?", (name,))
        if topic is None:
            unknown.add(name)
            continue
        number, offset = topic
        _append(store, (number << OFFSET_BITS) + offset, rows)
        largest = max(len(row[1]) + len(row[0] or b"") + len(row[2] or "") for row in rows)
        store.run(
            "UPDATE {s}_topic SET next = next + ?, largest = max(largest, ?) WHERE id = ?",
            (len(rows), largest, number),
        )
        store.touched.add(number)
    return unknown


def _append(store: Store, seq: int, rows: Sequence[Row]) -> None:
    done, size = 0, INSERT_ROWS
    while done < len(rows):
        while size > len(rows) - done:
            size //= 2  # powers of two, so that few statements have to be compiled
        part = rows[done : done + size]
        places = ",".join(("(?,?,?,?,?,?,?,?)",) * size)
        values = chain.from_iterable((number, *row) for number, row in enumerate(part, seq + done))
        store.run(f"INSERT INTO {{s}}_message VALUES {places}", list(values))  # noqa: S608
        done += size


def span(topic: int) -> tuple[int, int]:
    """The first `seq` of a topic, and the first beyond it."""
    return topic << OFFSET_BITS, (topic + 1) << OFFSET_BITS


def vanished(member: Member) -> ConnectionLost:
    """What its receiver is told."""
    topic, group = member.subscription.topic, member.subscription.group
    return ConnectionLost(f"the topic {topic!r} or its group {group!r} was removed")
