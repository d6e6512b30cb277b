"""Messages as rows of an embedded broker, written by any driver, synchronous or not.

What is to be done is a generator of statements, which is sent the first row of each: so it is said once, and whoever has the
connection runs it as its driver wants. Parameters are written `?`.
"""

import hashlib
import time
from collections.abc import Generator, Iterable, Sequence
from itertools import chain
from typing import Any, Final, Literal, TypeAlias

from things_kit.brokers.postgres import schema as postgres_schema
from things_kit.brokers.postgres import wire as postgres_wire
from things_kit.brokers.sqlite import schema as sqlite_schema
from things_kit.brokers.sqlite import wire as sqlite_wire
from things_kit.brokers.sqlite.store import Row
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message

Dialect: TypeAlias = Literal["sqlite", "postgresql"]
Statement: TypeAlias = tuple[str, Sequence[Any]]
Steps: TypeAlias = Generator[Statement, Sequence[Any] | None, None]

ROWS: Final = 100
"""The most messages of one statement: SQLite takes 999 parameters everywhere."""


def ddl(dialect: str, schema: str) -> list[str]:
    """The statements that make the broker's tables, where they are missing. Raises ConfigError."""
    if known(dialect) == "sqlite":
        return sqlite_schema.ddl(check_schema("sqlite", schema))
    return [
        f"CREATE SCHEMA IF NOT EXISTS {postgres_schema.quoted(schema)}",
        *postgres_schema.ddl(schema),
    ]


def known(dialect: str) -> Dialect:
    """The dialect, if it is one whose tables are known. Raises ConfigError."""
    if dialect == "sqlite":
        return "sqlite"
    if dialect in {"postgresql", "postgres"}:
        return "postgresql"
    raise ConfigError(f"an outbox needs PostgreSQL or SQLite; this is {dialect!r}")


def check_schema(dialect: Dialect, schema: str) -> str:
    """The schema, if it can be one there. Raises ConfigError."""
    try:
        if dialect == "sqlite":
            sqlite_schema.check_schema(schema)
    except ValueError as error:
        raise ConfigError(f"in SQLite an outbox's {error}; it is {schema!r}") from error
    return schema


def write(dialect: Dialect, schema: str, messages: Sequence[Message], *, lock_keys: bool) -> Steps:
    """Store messages, which have been checked and have an id and a time, in the transaction that is open."""
    if dialect == "sqlite":
        return _to_sqlite(check_schema(dialect, schema), messages)
    return _to_postgres(schema, messages, lock_keys=lock_keys)


def _to_sqlite(schema: str, messages: Sequence[Message]) -> Steps:
    """Takes the file's write lock first, so that nobody else gives the same places."""
    now = int(time.time())
    batches: dict[str, list[Row]] = {}
    for message in messages:
        batches.setdefault(message.topic, []).append(sqlite_wire.pack(message, now))
    for topic, rows in batches.items():
        largest = max(len(row[1]) + len(row[0] or b"") + len(row[2] or "") for row in rows)
        yield f"INSERT OR IGNORE INTO {schema}_topic (name) VALUES (?)", (topic,)  # noqa: S608 - a checked name
        row = yield f"SELECT id, next FROM {schema}_topic WHERE name = ?", (topic,)  # noqa: S608
        number, offset = row or (0, 0)
        first = (number << sqlite_schema.OFFSET_BITS) + offset
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            numbered = ((seq, *fields) for seq, fields in enumerate(part, first + start))
            yield f"INSERT INTO {schema}_message VALUES {_places(part)}", _flat(numbered)  # noqa: S608
        yield (
            f"UPDATE {schema}_topic SET next = next + ?, largest = max(largest, ?) WHERE id = ?",  # noqa: S608
            (len(rows), largest, number),
        )


def _to_postgres(schema: str, messages: Sequence[Message], *, lock_keys: bool) -> Steps:
    if lock_keys:
        keys = {(message.topic, message.key) for message in messages if message.key is not None}
        for number in sorted(_lock_number(topic, key) for topic, key in keys):
            yield "SELECT pg_advisory_xact_lock(?)", (number,)
    insert = postgres_schema.filled(postgres_wire.INSERT, schema)
    for start in range(0, len(messages), ROWS):
        rows = [postgres_wire.pack(message) for message in messages[start : start + ROWS]]
        yield f"{insert} VALUES {_places(rows)}", _flat(rows)


def _places(rows: Sequence[Sequence[Any]]) -> str:
    width = len(rows[0]) + (0 if isinstance(rows[0], postgres_wire.Row) else 1)
    return ", ".join([f"({', '.join('?' * width)})"] * len(rows))


def _flat(rows: Iterable[Sequence[Any]]) -> list[Any]:
    return list(chain.from_iterable(rows))


def _lock_number(topic: str, key: bytes) -> int:
    digest = hashlib.blake2b(topic.encode() + b"\0" + key, digest_size=8, person=b"things_kit").digest()
    return int.from_bytes(digest, "big", signed=True)
