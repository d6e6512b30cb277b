"""The marks of messages that were handled: rows of (group, topic, id), and when each expires."""

import hashlib
from typing import Final

from things_kit.brokers.postgres.schema import filled as in_postgres
from things_kit.brokers.sqlite.schema import filled as in_sqlite
from things_kit.patterns.outbox.writing import Dialect, check_schema

SWEPT: Final = 1000
"""The most marks that one statement deletes."""

LONGEST: Final = 2600
"""Bytes of a mark: an entry of PostgreSQL's index has room for 2,704, of which some are its own."""

_MARK: Final = (
    "INSERT INTO {t} AS i (grp, topic, id, expires) VALUES (:grp, :topic, :id, :expires) "
    "ON CONFLICT (grp, topic, id) DO UPDATE SET expires = excluded.expires WHERE i.expires <= :now"
)
_FORGET: Final = "DELETE FROM {t} WHERE grp = :grp AND topic = :topic AND id = :id"
_SWEEP: Final = {
    "sqlite": "DELETE FROM {t} WHERE (grp, topic, id) IN "
    "(SELECT grp, topic, id FROM {t} WHERE expires <= :now ORDER BY expires LIMIT :most)",
    # What another process sweeps, or a handler holds, is left for the next time. By the key it took three times as long.
    "postgresql": "DELETE FROM {t} WHERE ctid = ANY (ARRAY("
    "SELECT ctid FROM {t} WHERE expires <= :now ORDER BY expires LIMIT :most FOR UPDATE SKIP LOCKED))",
}
_LOOK: Final = "SELECT 1 FROM {t} WHERE grp IS NULL"
_LOCK: Final = "UPDATE {t} SET expires = expires WHERE grp IS NULL"
_PROLONG: Final = "UPDATE {s}_receiver SET expires = expires + :held WHERE expires > :began"


class Marks:
    """The statements about them, in one dialect. `mark` changes a row unless there is a mark that has not expired."""

    def __init__(self, dialect: Dialect, schema: str) -> None:
        check_schema(dialect, schema)
        fill = in_sqlite if dialect == "sqlite" else in_postgres
        table = fill("{s}_inbox" if dialect == "sqlite" else "{s}.inbox", schema.replace(":", "\\:"))
        self.mark = _MARK.replace("{t}", table)
        self.forget = _FORGET.replace("{t}", table)
        self.sweep = _SWEEP[dialect].replace("{t}", table)
        self.look = _LOOK.replace("{t}", table)
        self.lock = _LOCK.replace("{t}", table)  # a statement that writes, though it finds nothing
        self.prolong = in_sqlite(_PROLONG, schema)


def mark_of(group: str, topic: str, id: str) -> dict[str, str]:  # noqa: A002 - a message's
    """The columns of a mark: the names as they are, but a digest of what no database could keep, or index."""
    mark = {
        name: text if _is_kept(text) else _digest(text)
        for name, text in (("grp", group), ("topic", topic), ("id", id))
    }
    for name in ("id", "topic"):
        if sum(len(text.encode()) for text in mark.values()) > LONGEST:
            mark[name] = _digest(mark[name])
    return mark


def _is_kept(text: str) -> bool:
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _digest(text: str) -> str:
    return "sha256-" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
