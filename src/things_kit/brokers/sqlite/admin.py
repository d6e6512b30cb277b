"""Topics, groups and their receivers as rows: made, removed, counted, and swept of what all groups have settled."""

from collections.abc import Iterable
from typing import Any, Final

from things_kit.brokers.sqlite.scheduling import carry
from things_kit.brokers.sqlite.schema import OFFSET_BITS
from things_kit.brokers.sqlite.settling import return_all
from things_kit.brokers.sqlite.store import Member, Store, from_json, span, to_json
from things_kit.engine.clock import steady
from things_kit.engine.driver import ConnectionLost, Subscription
from things_kit.messaging.errors import ConfigError

SWEPT: Final = 10_000


def declare(store: Store, topic: str, groups: Iterable[str]) -> None:
    """Create the topic, and the groups at its earliest message, where they are missing."""
    number = _topic(store, topic, create=True)
    for group in groups:
        _group(store, number, group, "earliest", ephemeral=False)


def remove(store: Store, topic: str, group_name: str | None = None) -> None:
    """Delete a topic and all that belongs to it, or one group."""
    row = store.row("SELECT id FROM {s}_topic WHERE name = ?", (topic,))
    if row is None:
        return
    number: int = row[0]
    if group_name is not None:
        one = store.row(
            "SELECT id FROM {s}_consumer_group WHERE topic = ? AND name = ?", (number, group_name)
        )
        if one is not None:
            _drop_group(store, one[0])
            store.touched.add(number)
        return
    groups = store.row("SELECT json_group_array(id) FROM {s}_consumer_group WHERE topic = ?", (number,))[0]
    for group in from_json(groups):
        _drop_group(store, group)
    store.run("DELETE FROM {s}_message WHERE seq >= ? AND seq < ?", span(number))
    store.run("DELETE FROM {s}_scheduled WHERE topic = ?", (number,))
    store.run("DELETE FROM {s}_topic WHERE id = ?", (number,))
    store.swept_to.pop(number, None)
    store.touched.add(number)


def subscribe(store: Store, subscription: Subscription) -> Member:
    """A new receiver of a group, which is created if it may be."""
    topic = _topic(store, subscription.topic, create=subscription.create)
    carry(store, topic)
    group = _group(
        store,
        topic,
        subscription.group,
        "latest" if subscription.ephemeral and not subscription.past else subscription.start,
        ephemeral=subscription.ephemeral,
        create=subscription.create or subscription.ephemeral,
    )
    expires = steady() + store.lease
    number = store.execute(
        "INSERT INTO {s}_receiver (grp, expires) VALUES (?, ?)", (group, expires)
    ).lastrowid
    assert number is not None  # noqa: S101 - an INSERT has a row id
    return Member(number, group, topic, subscription)


def leave(store: Store, member: Member) -> None:
    """Give back what a receiver holds, as if it had not been handed out, and forget the receiver."""
    if member.subscription.ephemeral:
        _drop_group(store, member.group)
    else:
        return_all(store, member.id, member.group, 0)
        store.run("DELETE FROM {s}_receiver WHERE id = ?", (member.id,))
    store.touched.add(member.topic)


def _topic(store: Store, name: str, *, create: bool) -> int:
    row = store.row("SELECT id FROM {s}_topic WHERE name = ?", (name,))
    if row is not None:
        return int(row[0])
    if not create:
        raise ConfigError(f"the topic {name!r} does not exist")
    number = store.execute("INSERT INTO {s}_topic (name) VALUES (?)", (name,)).lastrowid
    if number is None or number >= 1 << (63 - OFFSET_BITS):
        raise ConfigError("the file has had too many topics; begin a new one")
    return number


def _group(store: Store, topic: int, name: str, start: str, *, ephemeral: bool, create: bool = True) -> int:
    row = store.row("SELECT id FROM {s}_consumer_group WHERE topic = ? AND name = ?", (topic, name))
    if row is not None:
        return int(row[0])
    if not create:
        raise ConfigError(f"the consumer group {name!r} does not exist")
    first, beyond = span(topic)
    cursor = (
        "next"
        if start == "latest"
        else "coalesce((SELECT min(seq) FROM {s}_message WHERE seq >= ? AND seq < ?) - ?, next)"
    )
    made = store.execute(
        f"INSERT INTO {{s}}_consumer_group (topic, name, cursor, ephemeral) SELECT id, ?, {cursor}, ? FROM {{s}}_topic WHERE id = ?",  # noqa: S608
        (name, *(() if start == "latest" else (first, beyond, first)), ephemeral, topic),
    )
    return int(made.lastrowid or 0)


def _drop_group(store: Store, group: int) -> None:
    store.run("DELETE FROM {s}_loan WHERE owner IN (SELECT id FROM {s}_receiver WHERE grp = ?)", (group,))
    store.run("DELETE FROM {s}_receiver WHERE grp = ?", (group,))
    store.run("DELETE FROM {s}_queued WHERE grp = ?", (group,))
    store.run("DELETE FROM {s}_consumer_group WHERE id = ?", (group,))


def topics(store: Store) -> list[str]:
    """The names of all topics."""
    return [name for (name,) in store.execute("SELECT name FROM {s}_topic ORDER BY name")]


def groups(store: Store) -> dict[str, list[str]]:
    """The groups of each topic that has any."""
    rows = store.execute(
        """SELECT t.name, g.name FROM {s}_consumer_group g JOIN {s}_topic t ON t.id = g.topic
        WHERE NOT g.ephemeral ORDER BY t.name, g.name"""
    )
    found: dict[str, list[str]] = {}
    for topic, group in rows:
        found.setdefault(topic, []).append(group)
    return found


def lag(store: Store, topic: str, group: str) -> int:
    """How many messages a group has not settled; a group that is missing would begin at the earliest."""
    row = store.row(
        """SELECT t.id, t.next, t.swept, g.id, g.cursor FROM {s}_topic t
        LEFT JOIN {s}_consumer_group g ON g.topic = t.id AND g.name = ? WHERE t.name = ?""",
        (group, topic),
    )
    if row is None:
        return 0
    number, beyond, swept, known, cursor = row
    base, start = number << OFFSET_BITS, cursor or 0
    # Above `swept` no message was ever deleted, so that offsets can be subtracted instead of rows counted.
    return int(
        store.row(
            """SELECT :whole + (SELECT count(*) FROM {s}_message WHERE seq >= :first AND seq < :swept)
            - (SELECT count(*) FROM {s}_message INDEXED BY {s}_message_targeted
                WHERE target IS NOT NULL AND target <> :name AND seq >= :first AND seq < :beyond)
            + (SELECT count(*) FROM {s}_queued WHERE grp = :group)
            + (SELECT count(*) FROM {s}_scheduled
                WHERE topic = :topic AND due <= :now AND (target IS NULL OR target = :name))
            + (SELECT count(*) FROM {s}_receiver r JOIN {s}_loan l ON l.owner = r.id WHERE r.grp = :group)""",
            {
                "whole": beyond - max(start, swept),
                "first": base + start,
                "swept": base + swept,
                "beyond": base + beyond,
                "name": group,
                "group": known,
                "topic": number,
                "now": steady(),
            },
        )[0]
    )


def sweep(store: Store, now: float) -> bool:
    """Delete some of what is old and settled by all groups of its topic; tells whether there is more to do."""
    known = store.row("SELECT json_group_array(id) FROM {s}_topic")[0]
    more = [_sweep_topic(store, topic, now - store.retain) for topic in from_json(known)]
    return any(more)


def _sweep_topic(store: Store, topic: int, cutoff: float) -> bool:
    base, _ = span(topic)
    parameters: dict[str, Any] = {"topic": topic, "base": base, "cutoff": cutoff, "most": SWEPT}
    parameters["first"] = base + store.swept_to.get(topic, 0)
    row = store.row(
        """SELECT max(seq), count(*) FROM (SELECT seq, stored FROM {s}_message WHERE seq >= :first
            AND seq < :base + (SELECT min(cursor) FROM {s}_consumer_group WHERE topic = :topic)
            ORDER BY seq LIMIT :most) WHERE stored < :cutoff""",
        parameters,
    )
    last, count = row
    store.swept_to[topic] = 0 if count < SWEPT else last - base + 1
    if last is None:
        return False
    parameters["last"] = last
    deleted = store.run(
        """DELETE FROM {s}_message AS m WHERE seq BETWEEN :first AND :last AND stored < :cutoff
        AND NOT EXISTS (SELECT 1 FROM {s}_consumer_group g CROSS JOIN {s}_queued q
            ON q.grp = g.id AND q.off = m.seq - :base WHERE g.topic = :topic)
        AND NOT EXISTS (SELECT 1 FROM {s}_consumer_group g CROSS JOIN {s}_receiver r ON r.grp = g.id
            CROSS JOIN {s}_loan l ON l.owner = r.id AND l.off = m.seq - :base WHERE g.topic = :topic)""",
        parameters,
    )
    if deleted:
        store.run("UPDATE {s}_topic SET swept = max(swept, :last - :base + 1) WHERE id = :topic", parameters)
    return bool(count == SWEPT)


# --- leases


def renew(store: Store, member: Member, now: float) -> None:
    """Renew a receiver's lease, which may have run out unnoticed while it held nothing."""
    expires = now + store.lease
    if store.run("UPDATE {s}_receiver SET expires = ? WHERE id = ?", (expires, member.id)):
        return
    exists = store.row("SELECT 1 FROM {s}_consumer_group WHERE id = ?", (member.group,))
    if member.held or exists is None:
        raise ConnectionLost(
            f"the receiver of group {member.subscription.group!r} on {member.subscription.topic!r} did not renew its lease in time"
        )
    store.run(
        "INSERT INTO {s}_receiver (id, grp, expires) VALUES (?, ?, ?)", (member.id, member.group, expires)
    )


def keep_alive(store: Store, members: Iterable[Member]) -> None:
    """Renew the leases of ephemeral groups, which would vanish although their process is well."""
    numbers = to_json([member.id for member in members]).decode()
    expires = steady() + store.lease
    store.run(
        "UPDATE {s}_receiver SET expires = ? WHERE id IN (SELECT value FROM json_each(?))", (expires, numbers)
    )


def reap(store: Store, now: float, but: int = 0) -> None:
    """Take from receivers whose lease has run out what they hold; their ephemeral groups go."""
    first = store.row("SELECT min(expires) FROM {s}_receiver WHERE id <> ?", (but,))[0]
    if first is None or first > now:
        return
    dead = store.execute(
        """SELECT r.id, g.id, g.topic, g.ephemeral FROM {s}_receiver r JOIN {s}_consumer_group g ON g.id = r.grp
        WHERE r.expires <= ? AND r.id <> ?""",
        (now, but),
    ).fetchall()
    for receiver, group, topic, ephemeral in dead:
        if ephemeral:
            _drop_group(store, group)
        else:
            return_all(store, receiver, group, 1)
            store.run("DELETE FROM {s}_receiver WHERE id = ?", (receiver,))
        store.touched.add(topic)
