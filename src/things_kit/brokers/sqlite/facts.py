"""How things are in the file of the embedded broker."""

import shutil
import time
from pathlib import Path
from typing import Final

from things_kit.brokers.sqlite.admin import lag, topics
from things_kit.brokers.sqlite.store import Store
from things_kit.engine.facts import Facts, GroupFacts, Question, TopicFacts

MEGABYTE: Final = 1_000_000

SCARCE: Final = 1000 * MEGABYTE
FULL: Final = 50 * MEGABYTE
"""Free bytes below which a disk will be full soon, and is as good as full."""

LONG_LOG: Final = 256 * MEGABYTE
"""Bytes of the write-ahead log that a checkpoint would long have emptied."""


def facts_of(store: Store, path: Path, question: Question, *, durable: bool) -> Facts:
    """Everything there is to tell, in the thread that has the store; reads only."""
    facts = Facts()
    _file(facts, path)
    _disk(facts, path)
    if durable:
        facts.find("ok", "synchronous", "A confirmed publish is on disk (synchronous=full).")
    else:
        what = "A power failure may lose what was confirmed in the last moments (synchronous=normal)."
        remedy = "Leave the option out of the URLs of those that publish, unless speed matters more."
        facts.find("warning", "synchronous", what, remedy)
    known = topics(store)
    facts.groups = _groups(store, question.topic)
    groups = {(group.topic, group.name) for group in facts.groups}
    for topic, group in question.wanted:
        there = topic in known
        facts.topics.append(TopicFacts(name=topic, there=there, others=() if there else known))
        if there and group is not None and (topic, group) not in groups:
            facts.groups.append(GroupFacts(name=group, topic=topic, there=False))
    return facts


def _file(facts: Facts, path: Path) -> None:
    size, log = _size(path), _size(path.with_name(path.name + "-wal"))
    if log > LONG_LOG:
        what = (
            f"Its write-ahead log has {_megabytes(log)}: somebody reads without end, so it cannot be emptied."
        )
        remedy = "Look for another program that has the file open in a long transaction, such as a backup."
        facts.find("warning", str(path), what, remedy)
    else:
        facts.find("ok", str(path), f"It has {_megabytes(size)}, and {_megabytes(log)} in its log.")


def _disk(facts: Facts, path: Path) -> None:
    free = shutil.disk_usage(path.absolute().parent).free
    what, remedy = f"It has {_megabytes(free)} left", "Make room on it."
    if free < FULL:
        facts.find("error", "disk", f"{what}: nothing can be published soon.", remedy)
    elif free < SCARCE:
        facts.find("warning", "disk", f"{what}.", remedy)
    else:
        facts.find("ok", "disk", f"{what}.")


def _groups(store: Store, topic: str | None) -> list[GroupFacts]:
    """Those of a topic, or of all.

    Something is ready if it could be received now, and does not all wait for its next attempt. Receivers that have nothing
    to hold renew no lease, so that only what is ready shows whether there are any.
    """
    rows = store.execute(
        """SELECT t.name, g.name,
            g.cursor < t.next OR EXISTS (SELECT 1 FROM {s}_queued q WHERE q.grp = g.id AND q.due <= :now)
                OR EXISTS (SELECT 1 FROM {s}_receiver r JOIN {s}_loan l ON l.owner = r.id WHERE r.grp = g.id),
            (SELECT count(*) FROM {s}_receiver r WHERE r.grp = g.id AND r.expires > :now)
        FROM {s}_consumer_group g JOIN {s}_topic t ON t.id = g.topic
        WHERE NOT g.ephemeral AND (:topic IS NULL OR t.name = :topic) ORDER BY t.name, g.name""",
        {"now": time.time(), "topic": topic},
    ).fetchall()
    return [
        GroupFacts(
            name=group,
            topic=name,
            ready=lag(store, name, group) if ready else 0,
            consumers=receivers if ready else None,
        )
        for name, group, ready, receivers in rows
    ]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _megabytes(size: int) -> str:
    return f"{size / MEGABYTE:,.1f} MB"
