"""Handing messages out: which ones may go to whom, in order, and as what they are read."""

from typing import Any, Final, NamedTuple

from things_kit.brokers.sqlite.admin import reap, renew
from things_kit.brokers.sqlite.scheduling import carry
from things_kit.brokers.sqlite.settling import note_owners
from things_kit.brokers.sqlite.store import LANE, Member, Store, from_json, to_json, vanished

SCAN: Final = 5_000

PAGE_BYTES: Final = 32 * 1024 * 1024

LANE_FLOWS: Final = """key IS NULL OR (
    NOT EXISTS (SELECT 1 FROM {s}_queued q WHERE q.grp = :group AND q.lane = key)
    AND coalesce((SELECT owner FROM {s}_loan l WHERE l.grp = :group AND l.lane = key LIMIT 1), :me) = :me)"""
"""Whether a message that nobody has seen may be handed out: its lane is nobody's, or this receiver's own."""

_MINE: Final = "seq BETWEEN :first AND :last AND (target IS NULL OR target = :name)"

_LEND: Final = {
    ordering: f"""INSERT INTO {{s}}_loan (owner, off, grp, lane, attempt) SELECT :me, o.value, :group, {lane}, 1
    FROM json_each(:offsets) o{" CROSS JOIN {s}_message m ON m.seq = :base + o.value" if ordering == "key" else ""}"""  # noqa: S608
    for ordering, lane in LANE.items()
}

_HOLD_BACK: Final = f"""INSERT INTO {{s}}_queued (grp, off, lane, due, attempt)
    SELECT :group, seq - :base, key, NULL, 1 FROM {{s}}_message
    WHERE {_MINE} AND seq - :base NOT IN (SELECT value FROM json_each(:offsets))"""  # noqa: S608

_PAGE: Final = """SELECT :offsets, json_group_array(length(key)), CAST(group_concat(key, '') AS BLOB),
        json_group_array(length(value)), CAST(group_concat(value, '') AS BLOB),
        '[' || group_concat(coalesce(headers, '{}')) || ']', json_group_array(id), json_group_array(time)
    FROM (SELECT m.key, m.value, m.headers, m.id, m.time FROM json_each(:offsets) o
        CROSS JOIN {s}_message m ON m.seq = :base + o.value)"""

_ATTEMPTS: Final = """SELECT json_group_array(attempt), json_group_array(suspect) FROM (
    SELECT l.attempt, l.suspect FROM json_each(:offsets) o CROSS JOIN {s}_loan l ON l.owner = :me AND l.off = o.value)"""


class Page(NamedTuple):
    """Messages as columns, in JSON or joined end to end; `attempts` and `suspects` are None where all are at their first."""

    offsets: str
    key_lengths: str
    keys: bytes | None
    value_lengths: str
    values: bytes | None
    headers: str
    ids: str
    times: str
    attempts: str | None
    suspects: str | None


class Prospect(NamedTuple):
    """Whether a receiver may get something now, and when at the latest it should look again without being told."""

    now: bool
    later: float | None


def prospect(store: Store, member: Member, now: float) -> Prospect:
    """Look, without writing, whether handing out is worth a transaction."""
    row = store.row(
        """SELECT g.cursor < t.next OR EXISTS (SELECT 1 FROM {s}_queued WHERE grp = g.id AND due <= :now)
                OR EXISTS (SELECT 1 FROM {s}_scheduled WHERE topic = t.id AND due <= :now),
            (SELECT min(due) FROM {s}_queued WHERE grp = g.id AND due > :now),
            (SELECT min(due) FROM {s}_scheduled WHERE topic = t.id AND due > :now),
            (SELECT min(expires) FROM {s}_receiver WHERE id <> :me)
        FROM {s}_consumer_group g JOIN {s}_topic t ON t.id = g.topic WHERE g.id = :group""",
        {"now": now, "me": member.id, "group": member.group},
    )
    if row is None:
        raise vanished(member)
    ready, due, scheduled, expires = row
    later = min((moment for moment in (due, scheduled, expires) if moment is not None), default=None)
    return Prospect(bool(ready) or (expires is not None and expires <= now), later)


def waiting(store: Store, member: Member, now: float) -> int:
    """How many messages this receiver could be handed now."""
    row = store.row(
        """SELECT t.next - g.cursor + (SELECT count(*) FROM {s}_scheduled WHERE topic = t.id AND due <= :now),
            (SELECT count(*) FROM {s}_queued q WHERE q.grp = g.id AND q.due <= :now
            AND (q.lane IS NULL OR coalesce(
                (SELECT owner FROM {s}_loan WHERE grp = g.id AND lane = q.lane LIMIT 1), :me) = :me))
        FROM {s}_consumer_group g JOIN {s}_topic t ON t.id = g.topic WHERE g.id = :group""",
        {"now": now, "me": member.id, "group": member.group},
    )
    if row is None:
        raise vanished(member)
    fresh, due = row
    if member.subscription.ordering == "partition" and _partition_is_taken(store, member):
        fresh = 0
    return int(fresh + due)


def hand_out(store: Store, member: Member, limit: int, now: float) -> tuple[Page | None, bool]:
    """Lend up to `limit` messages, in order; also tells whether looking on at once may find more."""
    reap(store, now, member.id)
    carry(store, member.topic)
    row = store.row(
        """SELECT g.cursor, t.next, t.largest, EXISTS (SELECT 1 FROM {s}_queued WHERE grp = g.id),
            EXISTS (SELECT 1 FROM {s}_receiver WHERE grp = g.id AND id <> ?), g.unnoted
        FROM {s}_consumer_group g JOIN {s}_topic t ON t.id = g.topic WHERE g.id = ?""",
        (member.id, member.group),
    )
    if row is None:
        raise vanished(member)
    cursor, beyond, largest, queued, others, unnoted = row
    heavy = largest * limit > PAGE_BYTES
    contended = bool(queued or others) and member.subscription.ordering != "none"
    if unnoted is not None and (contended or unnoted != member.subscription.ordering):
        note_owners(store, member.group, member.base, unnoted)
    offsets = again = _lend_due(store, member, limit, now, heavy) if queued else []
    more = False
    if len(offsets) < limit and cursor < beyond and not (heavy and offsets):
        fresh = _fresh(member, limit - len(offsets), cursor, beyond)
        found, end = _lend_fresh(store, member, fresh, contended=contended, heavy=heavy)
        more = not found and cursor < end < beyond
        offsets = sorted(offsets + found)
    if not offsets:
        return None, more
    renew(store, member, now)
    parameters = {"offsets": to_json(offsets).decode(), "me": member.id, "base": member.base}
    counts = store.row(_ATTEMPTS, parameters) if again else (None, None)
    return Page._make((*store.row(_PAGE, parameters), *counts)), False


def _lend_due(store: Store, member: Member, limit: int, now: float, heavy: bool) -> list[int]:
    parameters: dict[str, Any] = {"me": member.id, "group": member.group, "now": now, "limit": limit}
    picked = store.row(
        """SELECT json_group_array(off) FROM (
            SELECT q.off FROM {s}_queued q WHERE q.grp = :group AND q.due <= :now AND (q.lane IS NULL
                OR coalesce((SELECT owner FROM {s}_loan WHERE grp = :group AND lane = q.lane LIMIT 1), :me) = :me)
            ORDER BY q.due, q.off LIMIT :limit)""",
        parameters,
    )[0]
    offsets = from_json(picked)
    if heavy:
        offsets = _affordable(store, member, offsets)
    if offsets:
        parameters["offsets"] = to_json(offsets).decode()
        store.run(
            """INSERT INTO {s}_loan (owner, off, grp, lane, attempt, suspect)
            SELECT :me, off, grp, lane, attempt, suspect FROM {s}_queued
            WHERE grp = :group AND off IN (SELECT value FROM json_each(:offsets))""",
            parameters,
        )
        store.run(
            "DELETE FROM {s}_queued WHERE grp = :group AND off IN (SELECT value FROM json_each(:offsets))",
            parameters,
        )
    return offsets


def _fresh(member: Member, limit: int, cursor: int, beyond: int) -> dict[str, Any]:
    """The parameters of statements about what no receiver of the group has seen."""
    return {
        "me": member.id,
        "group": member.group,
        "name": member.subscription.group,
        "base": member.base,
        "first": member.base + cursor,
        "last": member.base + beyond - 1,
        "limit": limit,
    }


def _lend_fresh(
    store: Store, member: Member, fresh: dict[str, Any], *, contended: bool, heavy: bool
) -> tuple[list[int], int]:
    """Lend what no receiver of the group has seen; returns it, and the new cursor."""
    cursor = fresh["first"] - member.base
    if contended and member.subscription.ordering == "partition" and _partition_is_taken(store, member):
        return [], cursor  # the one lane waits, so nothing is passed
    by_key = contended and member.subscription.ordering == "key"
    if by_key:
        fresh["last"] = min(fresh["last"], fresh["first"] + SCAN - 1)
    picked = store.row(
        "SELECT json_group_array(off) FROM (SELECT seq - :base AS off FROM {s}_message "  # noqa: S608
        f"WHERE {_MINE} AND ({LANE_FLOWS if by_key else 1}) ORDER BY seq LIMIT :limit)",
        fresh,
    )[0]
    found = from_json(picked)
    offsets = _affordable(store, member, found) if heavy else found
    if len(found) == fresh["limit"] or len(offsets) < len(found):
        fresh["last"] = member.base + offsets[-1]
    end: int = fresh["last"] - member.base + 1
    fresh["offsets"] = to_json(offsets).decode()
    # Whose loans are the only ones of a group need not say in which lanes they are, until somebody joins it.
    fresh["unnoted"] = (
        None if contended or member.subscription.ordering == "none" else member.subscription.ordering
    )
    if offsets:
        store.run(_LEND[member.subscription.ordering if contended else "none"], fresh)
    if by_key and len(offsets) < end - cursor:
        store.run(_HOLD_BACK, fresh)
    fresh["end"] = end
    store.run("UPDATE {s}_consumer_group SET cursor = :end, unnoted = :unnoted WHERE id = :group", fresh)
    return offsets, end


def _partition_is_taken(store: Store, member: Member) -> bool:
    row = store.row(
        """SELECT EXISTS (SELECT 1 FROM {s}_queued WHERE grp = :group AND lane = 1)
            OR coalesce((SELECT owner FROM {s}_loan WHERE grp = :group AND lane = 1 LIMIT 1), :me) <> :me""",
        {"group": member.group, "me": member.id},
    )
    return bool(row[0])


def _affordable(store: Store, member: Member, offsets: list[int]) -> list[int]:
    """As many of these as fit into one page, at least one: a page is one value in SQLite and in memory."""
    count = store.row(
        """SELECT count(*) FROM (
            SELECT sum(length(m.value) + ifnull(length(m.key), 0) + ifnull(length(m.headers), 0))
                OVER (ORDER BY o.key) AS total
            FROM json_each(?) o CROSS JOIN {s}_message m ON m.seq = ? + o.value) WHERE total <= ?""",
        (to_json(offsets).decode(), member.base, PAGE_BYTES),
    )[0]
    return offsets[: max(1, count)]
