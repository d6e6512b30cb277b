"""What in the file of the embedded broker would lose messages, hold them up, or fill the disk."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from things_kit.brokers.sqlite.store import Store
from things_kit.engine.diagnosis import LARGE, Finding, Question
from things_kit.messaging.names import DEAD_LETTER_GROUP

MEGABYTE: Final = 1_000_000

SCARCE: Final = 1000 * MEGABYTE
FULL: Final = 50 * MEGABYTE
"""Free bytes below which a disk will be full soon, and is as good as full."""

LONG_LOG: Final = 256 * MEGABYTE
"""Bytes of the write-ahead log that a checkpoint would long have emptied."""


class Standing(msgspec.Struct, frozen=True):
    """How a group stands in a topic: `ready` if something could be received now, not all waits for its next attempt.

    Receivers that have nothing to hold renew no lease, so that only what is ready shows whether there are any.
    """

    topic: str
    group: str
    lag: int
    ready: bool
    receivers: int

    @property
    def subject(self) -> str:
        """What its finding is about."""
        return f"group {self.group}"


def examine(store: Store, path: Path, question: Question, *, durable: bool) -> list[Finding]:
    """Everything there is to find, in the thread that has the store; reads only."""
    standings = list(_standings(store, question.topic))
    findings = [*_file(path), *_disk(path), *_durability(durable)]
    if question.topic is not None:
        findings += _names(store, question, standings)
    return findings + [finding for each in standings for finding in judge_standing(each, question)]


def _file(path: Path) -> Iterator[Finding]:
    size, log = _size(path), _size(path.with_name(path.name + "-wal"))
    if log > LONG_LOG:
        what = (
            f"Its write-ahead log has {_megabytes(log)}: somebody reads without end, so it cannot be emptied."
        )
        remedy = "Look for another program that has the file open in a long transaction, such as a backup."
        yield Finding("warning", str(path), what, remedy)
    else:
        yield Finding("ok", str(path), f"It has {_megabytes(size)}, and {_megabytes(log)} in its log.")


def _disk(path: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(path.absolute().parent).free
    if free < FULL:
        what = f"The disk has {_megabytes(free)} left: nothing can be published soon."
        yield Finding("error", "disk", what, "Make room on it.")
    elif free < SCARCE:
        yield Finding("warning", "disk", f"It has {_megabytes(free)} left.", "Make room on it.")
    else:
        yield Finding("ok", "disk", f"It has {_megabytes(free)} left.")


def _durability(durable: bool) -> Iterator[Finding]:
    if durable:
        yield Finding("ok", "synchronous", "A confirmed publish is on disk (synchronous=full).")
    else:
        what = "A power failure may lose what was confirmed in the last moments (synchronous=normal)."
        remedy = "Leave the option out of the URLs of those that publish, unless speed matters more."
        yield Finding("warning", "synchronous", what, remedy)


def _names(store: Store, question: Question, standings: list[Standing]) -> Iterator[Finding]:
    rows = store.connection.execute("SELECT name FROM topic ORDER BY name").fetchall()
    known = [name for (name,) in rows]
    if question.topic not in known:
        there = (
            f"there are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}" if known else "nor another"
        )
        remedy = "Check the file's path and the spelling; who first publishes or consumes creates the topic."
        yield Finding("warning", f"topic {question.topic}", f"There is no such topic; {there}.", remedy)
    elif question.group is not None and question.group not in {each.group for each in standings}:
        what = f"It does not exist in {question.topic}; it begins at the earliest message, unless its first consumer says otherwise."
        remedy = "Check the spelling, and that its consumers were started."
        yield Finding("warning", f"group {question.group}", what, remedy)


def _standings(store: Store, topic: str | None) -> Iterator[Standing]:
    rows = store.connection.execute(
        """SELECT t.name, g.name,
            g.cursor < t.next OR EXISTS (SELECT 1 FROM queued q WHERE q.grp = g.id AND q.due <= :now)
                OR EXISTS (SELECT 1 FROM receiver r JOIN loan l ON l.owner = r.id WHERE r.grp = g.id),
            (SELECT count(*) FROM receiver r WHERE r.grp = g.id AND r.expires > :now)
        FROM consumer_group g JOIN topic t ON t.id = g.topic
        WHERE NOT g.ephemeral AND (:topic IS NULL OR t.name = :topic) ORDER BY t.name, g.name""",
        {"now": time.time(), "topic": topic},
    ).fetchall()
    for name, group, ready, receivers in rows:
        yield Standing(name, group, store.lag(name, group), bool(ready), receivers)


def judge_standing(standing: Standing, question: Question) -> Iterator[Finding]:
    """Whether a group keeps the messages of its topic from ever being deleted, or is what was asked about."""
    if standing.group == DEAD_LETTER_GROUP:
        return  # it is there to hold back, and nobody receives as it
    asked, lag = standing.group == question.group, standing.lag
    if lag and standing.ready and not standing.receivers and (asked or lag >= LARGE):
        what = f"{lag:,} messages of {standing.topic} wait, and nobody receives: they are never deleted."
        remedy = "Start its consumers; if it is not needed any more, let a handler that does nothing acknowledge them."
        yield Finding("error" if asked else "warning", standing.subject, what, remedy)
    elif asked:
        yield Finding("ok", standing.subject, f"What is ready in {standing.topic} is received.")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _megabytes(size: int) -> str:
    return f"{size / MEGABYTE:,.1f} MB"
