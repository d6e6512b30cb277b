"""What became of messages that were handed out, and which lanes go on by it."""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from things_kit.brokers.sqlite.schema import OFFSET_BITS
from things_kit.brokers.sqlite.store import LANE, Member, Store, to_json
from things_kit.engine.clock import steady
from things_kit.messaging.policy import Ordering

Give: TypeAlias = tuple[int, float, int, bool]
"""What is released: offset, when it is due, with which attempt, and whether it leaves its lane."""

PROMOTED: Final = 100


def settle(store: Store, member: Member, acknowledged: Sequence[int], released: Sequence[Give]) -> None:
    """Delete what was acknowledged, queue what was released, and let lanes go on that have become free."""
    parameters: dict[str, Any] = {"me": member.id, "group": member.group}
    parameters["acknowledged"] = to_json(acknowledged).decode()
    parameters["released"] = to_json(released).decode()
    queued, unnoted = store.row(
        """SELECT EXISTS (SELECT 1 FROM {s}_queued WHERE grp = :group),
            (SELECT unnoted FROM {s}_consumer_group WHERE id = :group)""",
        parameters,
    )
    if released and unnoted is not None:
        note_owners(store, member.group, member.base, unnoted)
    queued = queued or released
    if queued:
        _note_lanes(store, "off IN (SELECT value FROM json_each(:acknowledged))", parameters)
    if acknowledged:
        store.run(
            "DELETE FROM {s}_loan WHERE owner = :me AND off IN (SELECT value FROM json_each(:acknowledged))",
            parameters,
        )
    if released:
        # First those alone that were acknowledged: only a lane where something is released may have to step back.
        _promote(store, member.group)
        _release(store, parameters)
        _step_back(store, member.group)
    if queued:
        _promote(store, member.group)
        store.touched.add(member.topic)


def mark(store: Store, member: Member, offset: int, suspect: int) -> None:
    """Note beside a message that is handed out what its next delivery is to say."""
    store.run("UPDATE {s}_loan SET suspect = ? WHERE owner = ? AND off = ?", (suspect, member.id, offset))


def _release(store: Store, parameters: dict[str, Any]) -> None:
    released = "off IN (SELECT json_extract(value, '$[0]') FROM json_each(:released))"
    _note_lanes(store, released, parameters)
    store.run(
        """INSERT INTO {s}_queued (grp, off, lane, due, attempt)
        SELECT l.grp, l.off, CASE WHEN json_extract(r.value, '$[3]') THEN NULL ELSE l.lane END,
            json_extract(r.value, '$[1]'), json_extract(r.value, '$[2]')
        FROM json_each(:released) r CROSS JOIN {s}_loan l ON l.owner = :me AND l.off = json_extract(r.value, '$[0]')""",
        parameters,
    )
    store.run(f"DELETE FROM {{s}}_loan WHERE owner = :me AND {released}", parameters)  # noqa: S608


def return_all(store: Store, owner: int, group: int, attempts: int) -> None:
    """Queue all that a receiver holds, due now."""
    parameters = {"me": owner, "group": group, "now": steady(), "attempts": attempts}
    row = store.row("SELECT unnoted, topic FROM {s}_consumer_group WHERE id = ?", (group,))
    if row is not None and row[0] is not None:
        note_owners(store, group, row[1] << OFFSET_BITS, row[0])
    _note_lanes(store, "1", parameters)
    store.run(
        """INSERT INTO {s}_queued (grp, off, lane, due, attempt, suspect)
        SELECT grp, off, lane, :now, attempt + :attempts, suspect FROM {s}_loan WHERE owner = :me""",
        parameters,
    )
    store.run("DELETE FROM {s}_loan WHERE owner = :me", parameters)
    _step_back(store, group)
    _promote(store, group)


def note_owners(store: Store, group: int, base: int, ordering: Ordering) -> None:
    """Write into a group's loans in which lanes they are, which was left out while nobody had to know."""
    store.run(
        f"""UPDATE {{s}}_loan AS loan SET lane = (SELECT {LANE[ordering]} FROM {{s}}_message m WHERE m.seq = :base + loan.off)
        WHERE lane IS NULL AND owner IN (SELECT id FROM {{s}}_receiver WHERE grp = :group)""",  # noqa: S608
        {"base": base, "group": group},
    )
    store.run("UPDATE {s}_consumer_group SET unnoted = NULL WHERE id = ?", (group,))


def _note_lanes(store: Store, condition: str, parameters: dict[str, Any]) -> None:
    """Remember the lanes of loans, which are about to go, for `_step_back` and `_promote`."""
    store.run("DELETE FROM temp.lanes")
    store.run(
        "INSERT INTO temp.lanes (lane) "  # noqa: S608
        f"SELECT DISTINCT lane FROM {{s}}_loan WHERE owner = :me AND lane IS NOT NULL AND {condition}",
        parameters,
    )


def _step_back(store: Store, group: int) -> None:
    """In the lanes noted only the first queued message stays free: the others wait for it, and for its back-off."""
    store.run(
        """UPDATE temp.lanes SET lowest = min(
            ifnull((SELECT off FROM {s}_queued q WHERE q.grp = :group AND q.lane = lanes.lane AND q.due IS NULL
                ORDER BY q.off LIMIT 1), 1 << 62),
            ifnull((SELECT min(off) FROM {s}_queued q WHERE q.grp = :group AND q.lane = lanes.lane AND q.due >= 0),
                1 << 62))""",
        {"group": group},
    )
    store.run(
        """UPDATE {s}_queued SET due = NULL WHERE grp = :group AND off IN (
            SELECT q.off FROM temp.lanes l CROSS JOIN {s}_queued q
            ON q.grp = :group AND q.lane = l.lane AND q.due >= 0 AND q.off > l.lowest)""",
        {"group": group},
    )


def _promote(store: Store, group: int) -> None:
    """In the lanes noted, where nothing is free or handed out, the next ones become free."""
    store.run(
        """UPDATE {s}_queued SET due = :now WHERE grp = :group AND off IN (
            SELECT q.off FROM temp.lanes l CROSS JOIN {s}_queued q
            ON q.grp = :group AND q.lane = l.lane AND q.due IS NULL AND q.off <= coalesce((
                SELECT b.off FROM {s}_queued b WHERE b.grp = :group AND b.lane = l.lane AND b.due IS NULL
                ORDER BY b.off LIMIT 1 OFFSET :promoted), 1 << 62)
            WHERE NOT EXISTS (SELECT 1 FROM {s}_queued f WHERE f.grp = :group AND f.lane = l.lane AND f.due >= 0)
            AND NOT EXISTS (SELECT 1 FROM {s}_loan o WHERE o.grp = :group AND o.lane = l.lane))""",
        {"group": group, "now": steady(), "promoted": PROMOTED - 1},
    )
