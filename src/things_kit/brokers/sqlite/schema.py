"""The tables of the embedded broker, in a file of their own or an application's: how they are made and opened."""

import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from uuid import uuid4

from things_kit.brokers.sqlite.errors import primary_code
from things_kit.messaging.errors import ConfigError

APPLICATION_ID: Final = 0x544B4954
SCHEMA_VERSION: Final = 3

OFFSET_BITS: Final = 40
"""A message's `seq` is its topic's id and its offset: one B-tree that every topic appends to, and no index."""

OPEN_PATIENCE: Final = 2.0
BUSY_SLICE: Final = 0.1
"""Seconds that SQLite itself waits for a lock; whoever wants to wait longer asks again, and can stop in between."""

# A row of `loan` is handed out. A row of `queued` waits: from `due` on it is free to be handed out; with no `due`
# it is behind another message of its lane. Messages that are in neither and below the group's cursor are settled.
# In each lane of `queued` the free rows come first, and one lane's loans have one owner. A group whose `unnoted` names
# an ordering has one receiver and nothing queued: its loans need not say in which lane of that ordering they are.
TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS {s}_installation (
        version INTEGER NOT NULL,
        source TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS {s}_topic (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        next INTEGER NOT NULL DEFAULT 0,
        swept INTEGER NOT NULL DEFAULT 0,
        largest INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE IF NOT EXISTS {s}_message (
        seq INTEGER PRIMARY KEY,
        key BLOB,
        value BLOB NOT NULL,
        headers TEXT,
        id TEXT,
        time TEXT,
        stored INTEGER NOT NULL,
        target TEXT)""",
    "CREATE INDEX IF NOT EXISTS {s}_message_targeted ON {s}_message (seq, target) WHERE target IS NOT NULL",
    """CREATE TABLE IF NOT EXISTS {s}_scheduled (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        topic INTEGER NOT NULL,
        due REAL NOT NULL,
        schedule_id TEXT,
        key BLOB,
        value BLOB NOT NULL,
        headers TEXT,
        id TEXT,
        time TEXT,
        target TEXT,
        UNIQUE (topic, schedule_id))""",
    "CREATE INDEX IF NOT EXISTS {s}_scheduled_due ON {s}_scheduled (topic, due, seq)",
    """CREATE TABLE IF NOT EXISTS {s}_consumer_group (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        topic INTEGER NOT NULL,
        name TEXT NOT NULL,
        cursor INTEGER NOT NULL,
        ephemeral INTEGER NOT NULL,
        unnoted TEXT,
        UNIQUE (topic, name))""",
    """CREATE TABLE IF NOT EXISTS {s}_receiver (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        grp INTEGER NOT NULL,
        expires REAL NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS {s}_loan (
        owner INTEGER NOT NULL,
        off INTEGER NOT NULL,
        grp INTEGER NOT NULL,
        lane BLOB,
        attempt INTEGER NOT NULL,
        suspect INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (owner, off)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS {s}_loan_lane ON {s}_loan (grp, lane, owner) WHERE lane IS NOT NULL",
    """CREATE TABLE IF NOT EXISTS {s}_queued (
        grp INTEGER NOT NULL,
        off INTEGER NOT NULL,
        lane BLOB,
        due REAL,
        attempt INTEGER NOT NULL,
        suspect INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (grp, off)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS {s}_queued_due ON {s}_queued (grp, due, off) WHERE due IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS {s}_queued_lane ON {s}_queued (grp, lane, due, off) WHERE lane IS NOT NULL",
    """CREATE TABLE IF NOT EXISTS {s}_inbox (
        grp TEXT NOT NULL,
        topic TEXT NOT NULL,
        id TEXT NOT NULL,
        expires REAL NOT NULL,
        PRIMARY KEY (grp, topic, id)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS {s}_inbox_expires ON {s}_inbox (expires)",
)
"""What Alembic or an outbox may make just as well: the first connect adds the version, and the name of the source."""

_RENAMED: Final = ("topic", "message", "consumer_group", "receiver", "loan", "queued")
_INDEXES: Final = ("message_targeted", "loan_lane", "queued_due", "queued_lane")

UNPREFIXED: Final = {
    1: (
        "ALTER TABLE loan ADD COLUMN suspect INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE queued ADD COLUMN suspect INTEGER NOT NULL DEFAULT 0",
    ),
    2: (
        *(f"DROP INDEX {name}" for name in _INDEXES),
        *(f"ALTER TABLE {name} RENAME TO {{s}}_{name}" for name in _RENAMED),
    ),
}
"""What brings a file of 0.1 to the present, by its `user_version`: it had the file to itself, and no prefix."""


def check_schema(name: str) -> None:
    """Raise ValueError for what cannot begin the names of tables."""
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,47}", name) or name.lower().startswith("sqlite_"):
        raise ValueError(
            "schema must be a name of up to 48 letters, digits and underscores that begins with neither a digit nor sqlite_"
        )


def filled(statement: str, schema: str) -> str:
    """A statement with the schema's name in it: where it says `{s}`."""
    return statement.replace("{s}", schema)


def ddl(schema: str) -> list[str]:
    """The statements that make the tables with this prefix, where they are missing."""
    return [filled(statement, schema) for statement in TABLES]


def open_database(path: Path, schema: str, *, creates: bool = True) -> sqlite3.Connection:
    """A connection to a file with the broker's tables, which are made where they are missing, if `creates`.

    Raises:
        ConfigError: The file is no database, its tables are of another version, or this process may not write it.
        sqlite3.Error: See `explain`.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it")
    connection = sqlite3.connect(path, timeout=BUSY_SLICE, isolation_level=None, cached_statements=256)
    try:
        _prepare(connection, path, schema, creates=creates)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, schema: str, *, creates: bool) -> None:
    begin(connection, OPEN_PATIENCE)  # also finds out whether this process may write
    try:
        _install(connection, path, schema, creates=creates)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    if _write_ahead(connection) != "wal":
        raise ConfigError(
            f"{path}: its file system has no shared memory for SQLite's write-ahead log; use a local disk"
        )
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -16384")
    connection.execute("PRAGMA wal_autocheckpoint = 2000")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    connection.execute("CREATE TEMP TABLE lanes (lane BLOB PRIMARY KEY, lowest INTEGER) WITHOUT ROWID")


def _install(connection: sqlite3.Connection, path: Path, schema: str, *, creates: bool) -> None:
    """Make, or bring to the present, the tables of this schema."""
    there = _has_table(connection, f"{schema}_topic")
    if not there and not creates:
        raise ConfigError(f"{path} has no tables of the schema {schema!r}, and nothing is to be created")
    if not there:
        _adopt(connection, path, schema)
    for statement in ddl(schema):
        connection.execute(statement)
    row = connection.execute(f"SELECT version FROM {schema}_installation").fetchone()  # noqa: S608
    if row is None:
        connection.execute(
            f"INSERT INTO {schema}_installation (version, source) VALUES (?, ?)",  # noqa: S608
            (SCHEMA_VERSION, uuid4().hex),
        )
    elif row[0] != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} was written by another version of this library (schema {row[0]}; known is {SCHEMA_VERSION})"
        )


def _adopt(connection: sqlite3.Connection, path: Path, schema: str) -> None:
    """Give the tables of a file of 0.1 their prefix. A process that has it open still needs the new version then."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        return
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in UNPREFIXED:
        if _has_table(connection, "consumer_group"):
            raise ConfigError(f"{path} was written by another version of this library (schema {version})")
        return
    for number in range(version, max(UNPREFIXED) + 1):
        for statement in UNPREFIXED[number]:
            connection.execute(filled(statement, schema))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # 0.1 says that it is of another version


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    found = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ? COLLATE NOCASE", (name,)
    )
    return found.fetchone() is not None


def _write_ahead(connection: sqlite3.Connection) -> str:
    deadline = time.monotonic() + OPEN_PATIENCE
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def begin(
    connection: sqlite3.Connection,
    patience: float,
    hurry: Callable[[], bool] = lambda: False,
    held: Callable[[], bool] = lambda: False,
) -> None:
    """Begin to write, waiting so many seconds for other processes, a second in a hurry; then SQLITE_BUSY is raised.

    While a handler of this process has the lock, `held`, the time does not count.
    """
    started = time.monotonic()
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if primary_code(error) == sqlite3.SQLITE_BUSY and held():
                started = time.monotonic()
                continue
            waited = time.monotonic() - started
            if primary_code(error) != sqlite3.SQLITE_BUSY or waited > patience or (waited > 1.0 and hurry()):
                raise
        else:
            return
