"""What SQLite's errors mean to us, by their primary codes; sentences begin with the file."""

import sqlite3
from pathlib import Path
from typing import Final

from things_kit.engine.driver import ConnectionLost
from things_kit.engine.errors import ErrorTable, on
from things_kit.messaging.errors import BrokerUnavailable, ConfigError, MessageTooLarge


def primary_code(error: BaseException) -> int | None:
    """SQLite's error code without the extension that tells how it came about; None for Python's own errors."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


READ_ONLY: Final = "{doing} is read-only for this process: {said}"
NO_FILE: Final = "{doing} cannot be opened or created; the process must be able to write its folder"
NO_DATABASE: Final = "{doing} is not a SQLite database"
NO_PERMISSION: Final = "{doing}: no permission: {said}"

RUNNING: Final = ErrorTable(
    "sqlite",
    on(sqlite3.SQLITE_BUSY, raises=ConnectionLost, says="{doing} is locked by another process"),
    on(sqlite3.SQLITE_LOCKED, raises=ConnectionLost, says="{doing} is locked: {said}"),
    on(sqlite3.SQLITE_PROTOCOL, raises=ConnectionLost, says="{doing} is locked by other processes: {said}"),
    on(sqlite3.SQLITE_IOERR, raises=ConnectionLost, says="{doing} could not be read or written: {said}"),
    on(sqlite3.SQLITE_FULL, raises=ConnectionLost, says="{doing}: the disk is full: {said}"),
    on(sqlite3.SQLITE_NOMEM, raises=ConnectionLost, says="{doing}: out of memory"),
    on(sqlite3.SQLITE_READONLY, raises=ConnectionLost, says=READ_ONLY),
    on(sqlite3.SQLITE_CANTOPEN, raises=ConnectionLost, says=NO_FILE),
    on(sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, raises=ConnectionLost, says=NO_PERMISSION),
    on(sqlite3.SQLITE_NOTADB, raises=BrokerUnavailable, says=NO_DATABASE),
    on(sqlite3.SQLITE_CORRUPT, raises=BrokerUnavailable, says="{doing} is damaged: {said}"),
    on(sqlite3.SQLITE_TOOBIG, raises=MessageTooLarge, says="larger than SQLite takes: {said}"),
    client=sqlite3.Error,
    code=primary_code,
)

OPENING: Final = RUNNING.preceded_by(
    on(sqlite3.SQLITE_READONLY, raises=ConfigError, says=READ_ONLY),
    on(sqlite3.SQLITE_CANTOPEN, raises=ConfigError, says=NO_FILE),
    on(sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, raises=ConfigError, says=NO_PERMISSION),
    on(sqlite3.SQLITE_NOTADB, raises=ConfigError, says=NO_DATABASE),
)
"""While the file is being opened: what is wrong with it then is a wrong path, or a mistake of who set it up."""


def explain(error: BaseException, path: Path, *, opening: bool = False) -> Exception:
    """Our exception for one of SQLite's, which becomes its cause; our own ones stay as they are."""
    return (OPENING if opening else RUNNING).translate(error, str(path))
