"""What comes later: kept in a table of its own until it is due, then appended to its topic before anything newer is."""

from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from things_kit.brokers.sqlite.schema import OFFSET_BITS
from things_kit.brokers.sqlite.store import Row, Store, append
from things_kit.engine.clock import steady
from things_kit.engine.driver import Scheduled
from things_kit.messaging.message import Message

_headers: Final = msgspec.json.Decoder(dict[str, str]).decode

# A row that replaces another is a new one, so that of two with one time the first to be scheduled comes first.
SCHEDULE: Final = """INSERT OR REPLACE INTO {s}_scheduled (topic, due, schedule_id, key, value, headers, id, time, target)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""


def carrying(topic: int, now: float) -> Generator[tuple[str, Sequence[Any]], Any, bool]:
    """The statements that append what is due by now, each answered by its first row; returns whether there was any.

    An outbox runs them in its caller's transaction, by the caller's driver.
    """
    number, largest = yield (
        "SELECT count(*), max(length(value) + ifnull(length(key), 0) + ifnull(length(headers), 0)) FROM {s}_scheduled "
        "WHERE topic = ? AND due <= ?",
        (topic, now),
    )
    if not number:
        return False
    yield (
        """INSERT INTO {s}_message
        SELECT ? + (SELECT next FROM {s}_topic WHERE id = ?) + row_number() OVER (ORDER BY due, seq) - 1,
            key, value, headers, id, time, ?, target FROM {s}_scheduled WHERE topic = ? AND due <= ?""",
        (topic << OFFSET_BITS, topic, int(now), topic, now),
    )
    yield "DELETE FROM {s}_scheduled WHERE topic = ? AND due <= ?", (topic, now)
    yield (
        "UPDATE {s}_topic SET next = next + ?, largest = max(largest, ?) WHERE id = ?",
        (number, largest, topic),
    )
    return True


def carry(store: Store, topic: int) -> None:
    """Append what is due by now. Inside every transaction that appends to the topic, or hands out from it."""
    steps, row = carrying(topic, steady()), None
    try:
        while True:
            row = store.row(*steps.send(row))
    except StopIteration as end:
        if end.value:
            store.touched.add(topic)


def append_behind(store: Store, batches: Mapping[str, Sequence[Row]]) -> set[str]:
    """Append messages to their topics, behind what is due there; returns the topics that do not exist."""
    for name in batches:
        topic = _topic(store, name)
        if topic is not None:
            carry(store, topic)
    return append(store, batches)


def schedule(store: Store, entries: Sequence[tuple[str, float, str | None, Row]]) -> set[str]:
    """Keep messages until they are due; returns the topics that do not exist, whose messages were left out."""
    known: dict[str, int | None] = {}
    for name, due, schedule_id, (key, value, headers, identity, time, _, target) in entries:
        if name not in known:
            known[name] = _topic(store, name)
            if (found := known[name]) is not None:
                carry(store, found)
        topic = known[name]
        if topic is not None:
            row = (topic, due, schedule_id, key, value, headers, identity, time, target)
            store.run(SCHEDULE, row)
            store.touched.add(topic)
    return {name for name, topic in known.items() if topic is None}


def cancel(store: Store, name: str, schedule_id: str) -> bool:
    """Delete a message that is not due; whether there was one."""
    topic = _topic(store, name)
    if topic is None:
        return False
    found = store.run(
        "DELETE FROM {s}_scheduled WHERE topic = ? AND schedule_id = ? AND due > ?",
        (topic, schedule_id, steady()),
    )
    return found > 0


def upcoming(store: Store, name: str, limit: int) -> list[Scheduled]:
    """What is not due yet, soonest first."""
    rows = store.execute(
        """SELECT s.due, s.schedule_id, s.key, s.value, s.headers, s.id, s.time FROM {s}_scheduled s
        JOIN {s}_topic t ON t.id = s.topic WHERE t.name = ? AND s.due > ? ORDER BY s.due, s.seq LIMIT ?""",
        (name, steady(), limit),
    ).fetchall()
    return [
        Scheduled(
            Message(
                name,
                value,
                key,
                _headers(headers) if headers else {},
                timestamp=None if time is None else datetime.fromisoformat(time),
                id=identity,
            ),
            datetime.fromtimestamp(due, UTC),
            schedule_id,
        )
        for due, schedule_id, key, value, headers, identity, time in rows
    ]


def _topic(store: Store, name: str) -> int | None:
    row = store.row("SELECT id FROM {s}_topic WHERE name = ?", (name,))
    return None if row is None else int(row[0])
