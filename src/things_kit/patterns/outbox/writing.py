"""Messages as rows of an embedded broker, written by any driver, synchronous or not.

What is to be done is a generator of statements, which is sent the first row of each: so it is said once, and whoever has the
connection runs it as its driver wants. Here parameters are written `?`, and the schema `{s}`.
"""

import hashlib
from collections.abc import Callable, Generator, Iterable, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from things_kit.brokers.postgres import schema as postgres_schema
from things_kit.brokers.postgres import wire as postgres_wire
from things_kit.brokers.sqlite import schema as sqlite_schema
from things_kit.brokers.sqlite import wire as sqlite_wire
from things_kit.brokers.sqlite.scheduling import SCHEDULE, carrying
from things_kit.brokers.sqlite.store import Row
from things_kit.engine.clock import steady
from things_kit.messaging.errors import ConfigError, PublishError
from things_kit.messaging.message import Message

Dialect: TypeAlias = Literal["sqlite", "postgresql"]
Place: TypeAlias = Literal["?", "%s", "$"]
"""How a driver writes the place of a parameter; `$` has its number behind it."""

Statement: TypeAlias = tuple[str, Sequence[Any]]
Steps: TypeAlias = Generator[Statement, Sequence[Any] | None, None]

ROWS: Final = 100
"""The most messages of one statement: SQLite takes 999 parameters everywhere."""


def ddl(dialect: str, schema: str) -> list[str]:
    """The statements that make the broker's tables, where they are missing. Raises ConfigError."""
    if known(dialect) == "sqlite":
        return sqlite_schema.ddl(check_schema("sqlite", schema))
    check_schema("postgresql", schema)
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


def dialect_of(engine: Any) -> Dialect:
    """The dialect of an SQLAlchemy engine, asynchronous or not. Raises ConfigError for what is none."""
    if not hasattr(engine, "dialect") or not hasattr(engine, "pool"):
        raise ConfigError(f"this takes SQLAlchemy's Engine or AsyncEngine; it was given {engine!r}")
    return known(engine.dialect.name)


def check_schema(dialect: Dialect, schema: str) -> str:
    """The schema, if it can be one there. Raises ConfigError."""
    where, check = (
        ("SQLite", sqlite_schema.check_schema)
        if dialect == "sqlite"
        else ("PostgreSQL", postgres_schema.check_schema)
    )
    try:
        check(schema)
    except ValueError as error:
        raise ConfigError(f"in {where} an outbox's {error}; it is {schema!r}") from error
    return schema


class Later(NamedTuple):
    """When messages are due, and by which name one of them is known until then."""

    due: datetime
    schedule_id: str | None


def refusal(dialect: Dialect, message: Message) -> PublishError | None:
    """Why the database cannot have this message, before a statement fails and the transaction with it."""
    return postgres_wire.refusal(message) if dialect == "postgresql" else None


def write(
    dialect: Dialect,
    schema: str,
    messages: Sequence[Message],
    *,
    place: Place = "?",
    lock_keys: bool = False,
    later: Later | None = None,
) -> Steps:
    """Store messages, which have been checked and have an id and a time, in the transaction that is open."""
    check_schema(dialect, schema)
    name = schema.replace("%", "%%") if place == "%s" else schema
    if dialect == "sqlite":
        return _filled(_to_sqlite(messages, later), place, lambda text: sqlite_schema.filled(text, name))
    steps = _to_postgres(messages, later, lock_keys=lock_keys)
    return _filled(steps, place, lambda text: postgres_schema.filled(text, name))


def _filled(steps: Steps, place: Place, fill: Callable[[str], str]) -> Steps:
    """The statements as a driver takes them: with its places, and then the schema, in whose name anything may be."""
    row = None
    while True:
        try:
            statement, parameters = steps.send(row)
        except StopIteration:
            return
        row = yield fill(_placed(statement, place)), parameters


def _placed(statement: str, place: Place) -> str:
    if place == "?":
        return statement
    first, *rest = statement.split("?")
    if place == "%s":
        return "%s".join([first, *rest])
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))


# --- SQLite


def _to_sqlite(messages: Sequence[Message], later: Later | None) -> Steps:
    """Takes the file's write lock first, so that nobody else gives the same places; what is due comes before all that."""
    for topic, rows in sqlite_wire.by_topic(messages, int(steady())).items():
        yield "INSERT OR IGNORE INTO {s}_topic (name) VALUES (?)", (topic,)
        number = (yield "SELECT id FROM {s}_topic WHERE name = ?", (topic,)) or (0,)
        yield from carrying(number[0], steady())
        yield from _append(number[0], rows) if later is None else _schedule(number[0], rows, later)


def _append(topic: int, rows: Sequence[Row]) -> Steps:
    largest = max(len(row[1]) + len(row[0] or b"") + len(row[2] or "") for row in rows)
    row = yield "SELECT next FROM {s}_topic WHERE id = ?", (topic,)
    first = (topic << sqlite_schema.OFFSET_BITS) + (row or (0,))[0]
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        numbered = [(seq, *fields) for seq, fields in enumerate(part, first + start)]
        yield f"INSERT INTO {{s}}_message VALUES {_places(numbered)}", _flat(numbered)  # noqa: S608 - question marks
    yield (
        "UPDATE {s}_topic SET next = next + ?, largest = max(largest, ?) WHERE id = ?",
        (len(rows), largest, topic),
    )


def _schedule(topic: int, rows: Sequence[Row], later: Later) -> Steps:
    for key, value, headers, identity, moment, _, target in rows:
        fields = (key, value, headers, identity, moment, target)
        yield SCHEDULE, (topic, later.due.timestamp(), later.schedule_id, *fields)


# --- PostgreSQL


def _to_postgres(messages: Sequence[Message], later: Later | None, *, lock_keys: bool) -> Steps:
    if lock_keys:
        keys = {(message.topic, message.key) for message in messages if message.key is not None}
        for number in sorted(_lock_number(topic, key) for topic, key in keys):
            yield "SELECT pg_advisory_xact_lock(?)", (number,)
    insert = postgres_wire.INSERT if later is None else postgres_wire.SCHEDULE
    end = "" if later is None or later.schedule_id is None else postgres_wire.REPLACE
    for start in range(0, len(messages), ROWS):
        rows = [(*postgres_wire.pack(message), *(later or ())) for message in messages[start : start + ROWS]]
        yield f"{insert} VALUES {_places(rows)} {end}", _flat(rows)


def _places(rows: Sequence[Sequence[Any]]) -> str:
    return ", ".join([f"({', '.join('?' * len(rows[0]))})"] * len(rows))


def _flat(rows: Iterable[Sequence[Any]]) -> list[Any]:
    return list(chain.from_iterable(rows))


def _lock_number(topic: str, key: bytes) -> int:
    digest = hashlib.blake2b(topic.encode() + b"\0" + key, digest_size=8, person=b"things_kit").digest()
    return int.from_bytes(digest, "big", signed=True)
