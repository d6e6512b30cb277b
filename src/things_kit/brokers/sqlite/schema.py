"""The file of the embedded broker: its tables, how it is opened, and what SQLite's errors mean."""

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from things_kit.brokers.sqlite.errors import primary_code
from things_kit.messaging.errors import ConfigError

APPLICATION_ID: Final = 0x544B4954
SCHEMA_VERSION: Final = 2
MAGIC: Final = b"SQLite format 3\x00"

OFFSET_BITS: Final = 40
"""A message's `seq` is its topic's id and its offset: one B-tree that every topic appends to, and no index."""

OPEN_PATIENCE: Final = 2.0
BUSY_SLICE: Final = 0.1
"""Seconds that SQLite itself waits for a lock; whoever wants to wait longer asks again, and can stop in between."""

# A row of `loan` is handed out. A row of `queued` waits: from `due` on it is free to be handed out; with no `due`
# it is behind another message of its lane. Messages that are in neither and below the group's cursor are settled.
# In each lane of `queued` the free rows come first, and one lane's loans have one owner. A group whose `unnoted` names
# an ordering has one receiver and nothing queued: its loans need not say in which lane of that ordering they are.
SCHEMA: Final = (
    """CREATE TABLE topic (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        next INTEGER NOT NULL DEFAULT 0,
        swept INTEGER NOT NULL DEFAULT 0,
        largest INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE message (
        seq INTEGER PRIMARY KEY,
        key BLOB,
        value BLOB NOT NULL,
        headers TEXT,
        id TEXT,
        time TEXT,
        stored INTEGER NOT NULL,
        target TEXT)""",
    "CREATE INDEX message_targeted ON message (seq, target) WHERE target IS NOT NULL",
    """CREATE TABLE consumer_group (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        topic INTEGER NOT NULL,
        name TEXT NOT NULL,
        cursor INTEGER NOT NULL,
        ephemeral INTEGER NOT NULL,
        unnoted TEXT,
        UNIQUE (topic, name))""",
    """CREATE TABLE receiver (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        grp INTEGER NOT NULL,
        expires REAL NOT NULL)""",
    """CREATE TABLE loan (
        owner INTEGER NOT NULL,
        off INTEGER NOT NULL,
        grp INTEGER NOT NULL,
        lane BLOB,
        attempt INTEGER NOT NULL,
        suspect INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (owner, off)) WITHOUT ROWID""",
    "CREATE INDEX loan_lane ON loan (grp, lane, owner) WHERE lane IS NOT NULL",
    """CREATE TABLE queued (
        grp INTEGER NOT NULL,
        off INTEGER NOT NULL,
        lane BLOB,
        due REAL,
        attempt INTEGER NOT NULL,
        suspect INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (grp, off)) WITHOUT ROWID""",
    "CREATE INDEX queued_due ON queued (grp, due, off) WHERE due IS NOT NULL",
    "CREATE INDEX queued_lane ON queued (grp, lane, due, off) WHERE lane IS NOT NULL",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

MIGRATIONS: Final = {
    1: (
        "ALTER TABLE loan ADD COLUMN suspect INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE queued ADD COLUMN suspect INTEGER NOT NULL DEFAULT 0",
        "PRAGMA user_version = 2",
    )
}
"""What makes the next version of each. Processes that have the older version's code open go on working beside."""


def open_database(path: Path) -> sqlite3.Connection:
    """A connection to the broker's file, which is created if it is missing; a file of something else stays untouched.

    Raises:
        ConfigError: The file cannot be ours, or this process may not write it.
        sqlite3.Error: See `explain`.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it")
    _refuse_foreign(path)
    connection = sqlite3.connect(path, timeout=BUSY_SLICE, isolation_level=None, cached_statements=256)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    begin(connection, OPEN_PATIENCE)  # also finds out whether this process may write
    try:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in SCHEMA:
                connection.execute(statement)
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise _foreign(path)
        while version in MIGRATIONS:
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"{path} was written by another version of this library (schema {version}; known is {SCHEMA_VERSION})"
            )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    # Only now: as long as the tables were created in a rollback journal, the header of the file tells whose it is,
    # and `_refuse_foreign` need not ask SQLite, which would tidy up another program's log.
    if _write_ahead(connection) != "wal":
        raise ConfigError(
            f"{path}: its file system has no shared memory for SQLite's write-ahead log; use a local disk"
        )
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -16384")
    connection.execute("PRAGMA wal_autocheckpoint = 2000")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    connection.execute("CREATE TEMP TABLE lanes (lane BLOB PRIMARY KEY, lowest INTEGER) WITHOUT ROWID")


def _write_ahead(connection: sqlite3.Connection) -> str:
    deadline = time.monotonic() + OPEN_PATIENCE
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def begin(connection: sqlite3.Connection, patience: float, hurry: Callable[[], bool] = lambda: False) -> None:
    """Begin to write, waiting so many seconds for other processes, a second in a hurry; then SQLITE_BUSY is raised."""
    started = time.monotonic()
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            waited = time.monotonic() - started
            if primary_code(error) != sqlite3.SQLITE_BUSY or waited > patience or (waited > 1.0 and hurry()):
                raise
        else:
            return


def _refuse_foreign(path: Path) -> None:
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if not header or Path(f"{path}-journal").exists():
        return  # new, or being created: SQLite knows
    if not header.startswith(MAGIC):
        raise ConfigError(f"{path} is not a SQLite database; it was left as it is")
    application = int.from_bytes(header[68:72], "big")
    if application == APPLICATION_ID:
        return
    write_ahead = header[18] == 2  # ours has its application id before it gets there
    if application or write_ahead or int.from_bytes(header[60:64], "big") or _has_tables(path):
        raise _foreign(path)


def _has_tables(path: Path) -> bool:
    uri = f"{path.absolute().as_uri()}?immutable=1"  # takes no lock and tidies nothing up
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _foreign(path: Path) -> ConfigError:
    return ConfigError(f"{path} is a database of something else; it was left as it is")
