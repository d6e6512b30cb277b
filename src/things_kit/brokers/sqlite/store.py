"""What the embedded broker does with its tables: every operation, as SQL, inside the caller's transaction.

Each operation takes a handful of statements however many messages it is about, and no statement yields rows one by
one. Python's sqlite3 lets go of the interpreter's lock at every row, and a busy event loop gives it back late: the
same thousand messages, read row by row beside a loop that runs callbacks of 0.1 ms, took 13 seconds instead of 2 ms.
So lists of offsets go in as JSON, and messages come out as columns, joined end to end.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from things_kit.brokers.sqlite.schema import OFFSET_BITS
from things_kit.engine.clock import steady
from things_kit.engine.driver import ConnectionLost, Subscription
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.policy import Ordering

Row: TypeAlias = tuple[bytes | None, bytes, str | None, str | None, str | None, int, str | None]
"""key, value, headers as JSON, id, ISO 8601 timestamp, seconds since 1970 when it was stored, target group."""

Give: TypeAlias = tuple[int, float, int, bool]
"""What is released: offset, when it is due, with which attempt, and whether it leaves its lane."""

INSERT_ROWS: Final = 256
SCAN: Final = 5_000
PROMOTED: Final = 100
SWEPT: Final = 10_000
PAGE_BYTES: Final = 32 * 1024 * 1024

_offsets = msgspec.json.Decoder(list[int]).decode
_json = msgspec.json.encode

_LANE: Final[dict[Ordering, str]] = {"key": "m.key", "partition": "1", "none": "NULL"}

_LANE_FLOWS: Final = """key IS NULL OR (
    NOT EXISTS (SELECT 1 FROM queued q WHERE q.grp = :group AND q.lane = key)
    AND coalesce((SELECT owner FROM loan l WHERE l.grp = :group AND l.lane = key LIMIT 1), :me) = :me)"""
"""Whether a message that nobody has seen may be handed out: its lane is nobody's, or this receiver's own."""

_MINE: Final = "seq BETWEEN :first AND :last AND (target IS NULL OR target = :name)"

_LEND: Final = {
    ordering: f"""INSERT INTO loan (owner, off, grp, lane, attempt) SELECT :me, o.value, :group, {lane}, 1
    FROM json_each(:offsets) o{" CROSS JOIN message m ON m.seq = :base + o.value" if ordering == "key" else ""}"""  # noqa: S608
    for ordering, lane in _LANE.items()
}

_HOLD_BACK: Final = f"""INSERT INTO queued (grp, off, lane, due, attempt)
    SELECT :group, seq - :base, key, NULL, 1 FROM message
    WHERE {_MINE} AND seq - :base NOT IN (SELECT value FROM json_each(:offsets))"""  # noqa: S608

_PAGE: Final = """SELECT :offsets, json_group_array(length(key)), CAST(group_concat(key, '') AS BLOB),
        json_group_array(length(value)), CAST(group_concat(value, '') AS BLOB),
        '[' || group_concat(coalesce(headers, '{}')) || ']', json_group_array(id), json_group_array(time)
    FROM (SELECT m.key, m.value, m.headers, m.id, m.time FROM json_each(:offsets) o
        CROSS JOIN message m ON m.seq = :base + o.value)"""

_ATTEMPTS: Final = """SELECT json_group_array(attempt), json_group_array(suspect) FROM (
    SELECT l.attempt, l.suspect FROM json_each(:offsets) o CROSS JOIN loan l ON l.owner = :me AND l.off = o.value)"""


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


class Member:
    """One receiver: its row, its group, and how many messages it holds, which only the event loop counts."""

    __slots__ = (
        "base",
        "closed",
        "ephemeral",
        "group",
        "group_name",
        "held",
        "id",
        "ordering",
        "topic",
        "topic_name",
    )

    def __init__(self, subscription: Subscription, number: int, group: int, topic: int) -> None:
        self.id = number
        self.group = group
        self.topic = topic
        self.base = topic << OFFSET_BITS
        self.topic_name = subscription.topic
        self.group_name = subscription.group
        self.ordering = subscription.ordering
        self.ephemeral = subscription.ephemeral
        self.held = 0
        self.closed = False


class Prospect(NamedTuple):
    """Whether a receiver may get something now, and when at the latest it should look again without being told."""

    now: bool
    later: float | None


class Store:
    """The operations on one connection. `touched` collects the topics where something new is to be had."""

    def __init__(self, connection: sqlite3.Connection, *, lease: float, retain: float) -> None:
        self.connection = connection
        self.touched: set[int] = set()
        self._lease = lease
        self._retain = retain
        self._swept_to: dict[int, int] = {}

    def _run(self, statement: str, parameters: Any = ()) -> int:
        return self.connection.execute(statement, parameters).rowcount

    def _row(self, statement: str, parameters: Any = ()) -> Any:
        return self.connection.execute(statement, parameters).fetchone()

    # Topics and groups

    def declare(self, topic: str, groups: Iterable[str]) -> None:
        """Create the topic, and the groups at its earliest message, where they are missing."""
        number = self._topic(topic, create=True)
        for group in groups:
            self._group(number, group, "earliest", ephemeral=False)

    def remove(self, topic: str, group_name: str | None = None) -> None:
        """Delete a topic and all that belongs to it, or one group."""
        row = self._row("SELECT id FROM topic WHERE name = ?", (topic,))
        if row is None:
            return
        number: int = row[0]
        if group_name is not None:
            one = self._row(
                "SELECT id FROM consumer_group WHERE topic = ? AND name = ?", (number, group_name)
            )
            if one is not None:
                self._drop_group(one[0])
                self.touched.add(number)
            return
        groups = self._row("SELECT json_group_array(id) FROM consumer_group WHERE topic = ?", (number,))[0]
        for group in _offsets(groups):
            self._drop_group(group)
        self._run("DELETE FROM message WHERE seq >= ? AND seq < ?", _span(number))
        self._run("DELETE FROM topic WHERE id = ?", (number,))
        self._swept_to.pop(number, None)
        self.touched.add(number)

    def subscribe(self, subscription: Subscription) -> Member:
        """A new receiver of a group, which is created if it may be."""
        topic = self._topic(subscription.topic, create=subscription.create)
        group = self._group(
            topic,
            subscription.group,
            "latest" if subscription.ephemeral and not subscription.past else subscription.start,
            ephemeral=subscription.ephemeral,
            create=subscription.create or subscription.ephemeral,
        )
        expires = steady() + self._lease
        number = self.connection.execute(
            "INSERT INTO receiver (grp, expires) VALUES (?, ?)", (group, expires)
        ).lastrowid
        assert number is not None  # noqa: S101 - an INSERT has a row id
        return Member(subscription, number, group, topic)

    def leave(self, member: Member) -> None:
        """Give back what a receiver holds, as if it had not been handed out, and forget the receiver."""
        if member.ephemeral:
            self._drop_group(member.group)
        else:
            self._return_all(member.id, member.group, 0)
            self._run("DELETE FROM receiver WHERE id = ?", (member.id,))
        self.touched.add(member.topic)

    def _topic(self, name: str, *, create: bool) -> int:
        row = self._row("SELECT id FROM topic WHERE name = ?", (name,))
        if row is not None:
            return int(row[0])
        if not create:
            raise ConfigError(f"the topic {name!r} does not exist")
        number = self.connection.execute("INSERT INTO topic (name) VALUES (?)", (name,)).lastrowid
        if number is None or number >= 1 << (63 - OFFSET_BITS):
            raise ConfigError("the file has had too many topics; begin a new one")
        return number

    def _group(self, topic: int, name: str, start: str, *, ephemeral: bool, create: bool = True) -> int:
        row = self._row("SELECT id FROM consumer_group WHERE topic = ? AND name = ?", (topic, name))
        if row is not None:
            return int(row[0])
        if not create:
            raise ConfigError(f"the consumer group {name!r} does not exist")
        first, beyond = _span(topic)
        cursor = (
            "next"
            if start == "latest"
            else "coalesce((SELECT min(seq) FROM message WHERE seq >= ? AND seq < ?) - ?, next)"
        )
        made = self.connection.execute(
            f"INSERT INTO consumer_group (topic, name, cursor, ephemeral) SELECT id, ?, {cursor}, ? FROM topic WHERE id = ?",  # noqa: S608
            (name, *(() if start == "latest" else (first, beyond, first)), ephemeral, topic),
        )
        return int(made.lastrowid or 0)

    def _drop_group(self, group: int) -> None:
        self._run("DELETE FROM loan WHERE owner IN (SELECT id FROM receiver WHERE grp = ?)", (group,))
        self._run("DELETE FROM receiver WHERE grp = ?", (group,))
        self._run("DELETE FROM queued WHERE grp = ?", (group,))
        self._run("DELETE FROM consumer_group WHERE id = ?", (group,))

    # Publishing

    def send(self, batches: Mapping[str, Sequence[Row]]) -> set[str]:
        """Append messages to their topics; returns the topics that do not exist, whose messages were left out."""
        unknown = set()
        for name, rows in batches.items():
            topic = self._row("SELECT id, next FROM topic WHERE name = ?", (name,))
            if topic is None:
                unknown.add(name)
                continue
            number, offset = topic
            self._append((number << OFFSET_BITS) + offset, rows)
            largest = max(len(row[1]) + len(row[0] or b"") + len(row[2] or "") for row in rows)
            self._run(
                "UPDATE topic SET next = next + ?, largest = max(largest, ?) WHERE id = ?",
                (len(rows), largest, number),
            )
            self.touched.add(number)
        return unknown

    def _append(self, seq: int, rows: Sequence[Row]) -> None:
        done, size = 0, INSERT_ROWS
        while done < len(rows):
            while size > len(rows) - done:
                size //= 2  # powers of two, so that few statements have to be compiled
            part = rows[done : done + size]
            places = ",".join(("(?,?,?,?,?,?,?,?)",) * size)
            values = chain.from_iterable((number, *row) for number, row in enumerate(part, seq + done))
            self._run(f"INSERT INTO message VALUES {places}", list(values))  # noqa: S608
            done += size

    # Handing out

    def prospect(self, member: Member, now: float) -> Prospect:
        """Look, without writing, whether handing out is worth a transaction."""
        row = self._row(
            """SELECT g.cursor < t.next OR EXISTS (SELECT 1 FROM queued WHERE grp = g.id AND due <= :now),
                (SELECT min(due) FROM queued WHERE grp = g.id AND due > :now),
                (SELECT min(expires) FROM receiver WHERE id <> :me)
            FROM consumer_group g JOIN topic t ON t.id = g.topic WHERE g.id = :group""",
            {"now": now, "me": member.id, "group": member.group},
        )
        if row is None:
            raise _vanished(member)
        ready, due, expires = row
        later = min((moment for moment in (due, expires) if moment is not None), default=None)
        return Prospect(bool(ready) or (expires is not None and expires <= now), later)

    def waiting(self, member: Member, now: float) -> int:
        """How many messages this receiver could be handed now."""
        row = self._row(
            """SELECT t.next - g.cursor, (SELECT count(*) FROM queued q WHERE q.grp = g.id AND q.due <= :now
                AND (q.lane IS NULL OR coalesce(
                    (SELECT owner FROM loan WHERE grp = g.id AND lane = q.lane LIMIT 1), :me) = :me))
            FROM consumer_group g JOIN topic t ON t.id = g.topic WHERE g.id = :group""",
            {"now": now, "me": member.id, "group": member.group},
        )
        if row is None:
            raise _vanished(member)
        fresh, due = row
        if member.ordering == "partition" and self._partition_is_taken(member):
            fresh = 0
        return int(fresh + due)

    def hand_out(self, member: Member, limit: int, now: float) -> tuple[Page | None, bool]:
        """Lend up to `limit` messages, in order; also tells whether looking on at once may find more."""
        self.reap(now, member.id)
        row = self._row(
            """SELECT g.cursor, t.next, t.largest, EXISTS (SELECT 1 FROM queued WHERE grp = g.id),
                EXISTS (SELECT 1 FROM receiver WHERE grp = g.id AND id <> ?), g.unnoted
            FROM consumer_group g JOIN topic t ON t.id = g.topic WHERE g.id = ?""",
            (member.id, member.group),
        )
        if row is None:
            raise _vanished(member)
        cursor, beyond, largest, queued, others, unnoted = row
        heavy = largest * limit > PAGE_BYTES
        contended = bool(queued or others) and member.ordering != "none"
        if unnoted is not None and (contended or unnoted != member.ordering):
            self._note_owners(member.group, member.base, unnoted)
        offsets = again = self._lend_due(member, limit, now, heavy) if queued else []
        more = False
        if len(offsets) < limit and cursor < beyond and not (heavy and offsets):
            fresh = self._fresh(member, limit - len(offsets), cursor, beyond)
            found, end = self._lend_fresh(member, fresh, contended=contended, heavy=heavy)
            more = not found and cursor < end < beyond
            offsets = sorted(offsets + found)
        if not offsets:
            return None, more
        self.renew(member, now)
        parameters = {"offsets": _json(offsets).decode(), "me": member.id, "base": member.base}
        counts = self._row(_ATTEMPTS, parameters) if again else (None, None)
        return Page._make((*self._row(_PAGE, parameters), *counts)), False

    def _lend_due(self, member: Member, limit: int, now: float, heavy: bool) -> list[int]:
        parameters: dict[str, Any] = {"me": member.id, "group": member.group, "now": now, "limit": limit}
        picked = self._row(
            """SELECT json_group_array(off) FROM (
                SELECT q.off FROM queued q WHERE q.grp = :group AND q.due <= :now AND (q.lane IS NULL
                    OR coalesce((SELECT owner FROM loan WHERE grp = :group AND lane = q.lane LIMIT 1), :me) = :me)
                ORDER BY q.due, q.off LIMIT :limit)""",
            parameters,
        )[0]
        offsets = _offsets(picked)
        if heavy:
            offsets = self._affordable(member, offsets)
        if offsets:
            parameters["offsets"] = _json(offsets).decode()
            self._run(
                """INSERT INTO loan (owner, off, grp, lane, attempt, suspect)
                SELECT :me, off, grp, lane, attempt, suspect FROM queued
                WHERE grp = :group AND off IN (SELECT value FROM json_each(:offsets))""",
                parameters,
            )
            self._run(
                "DELETE FROM queued WHERE grp = :group AND off IN (SELECT value FROM json_each(:offsets))",
                parameters,
            )
        return offsets

    @staticmethod
    def _fresh(member: Member, limit: int, cursor: int, beyond: int) -> dict[str, Any]:
        """The parameters of statements about what no receiver of the group has seen."""
        return {
            "me": member.id,
            "group": member.group,
            "name": member.group_name,
            "base": member.base,
            "first": member.base + cursor,
            "last": member.base + beyond - 1,
            "limit": limit,
        }

    def _lend_fresh(
        self, member: Member, fresh: dict[str, Any], *, contended: bool, heavy: bool
    ) -> tuple[list[int], int]:
        """Lend what no receiver of the group has seen; returns it, and the new cursor."""
        cursor = fresh["first"] - member.base
        if contended and member.ordering == "partition" and self._partition_is_taken(member):
            return [], cursor  # the one lane waits, so nothing is passed
        by_key = contended and member.ordering == "key"
        if by_key:
            fresh["last"] = min(fresh["last"], fresh["first"] + SCAN - 1)
        picked = self._row(
            "SELECT json_group_array(off) FROM (SELECT seq - :base AS off FROM message "  # noqa: S608
            f"WHERE {_MINE} AND ({_LANE_FLOWS if by_key else 1}) ORDER BY seq LIMIT :limit)",
            fresh,
        )[0]
        found = _offsets(picked)
        offsets = self._affordable(member, found) if heavy else found
        if len(found) == fresh["limit"] or len(offsets) < len(found):
            fresh["last"] = member.base + offsets[-1]
        end: int = fresh["last"] - member.base + 1
        fresh["offsets"] = _json(offsets).decode()
        # Whose loans are the only ones of a group need not say in which lanes they are, until somebody joins it.
        fresh["unnoted"] = None if contended or member.ordering == "none" else member.ordering
        if offsets:
            self._run(_LEND[member.ordering if contended else "none"], fresh)
        if by_key and len(offsets) < end - cursor:
            self._run(_HOLD_BACK, fresh)
        fresh["end"] = end
        self._run("UPDATE consumer_group SET cursor = :end, unnoted = :unnoted WHERE id = :group", fresh)
        return offsets, end

    def _note_owners(self, group: int, base: int, ordering: Ordering) -> None:
        """Write into a group's loans in which lanes they are, which was left out while nobody had to know."""
        self._run(
            f"""UPDATE loan SET lane = (SELECT {_LANE[ordering]} FROM message m WHERE m.seq = :base + loan.off)
            WHERE lane IS NULL AND owner IN (SELECT id FROM receiver WHERE grp = :group)""",  # noqa: S608
            {"base": base, "group": group},
        )
        self._run("UPDATE consumer_group SET unnoted = NULL WHERE id = ?", (group,))

    def _partition_is_taken(self, member: Member) -> bool:
        row = self._row(
            """SELECT EXISTS (SELECT 1 FROM queued WHERE grp = :group AND lane = 1)
                OR coalesce((SELECT owner FROM loan WHERE grp = :group AND lane = 1 LIMIT 1), :me) <> :me""",
            {"group": member.group, "me": member.id},
        )
        return bool(row[0])

    def _affordable(self, member: Member, offsets: list[int]) -> list[int]:
        """As many of these as fit into one page, at least one: a page is one value in SQLite and in memory."""
        count = self._row(
            """SELECT count(*) FROM (
                SELECT sum(length(m.value) + ifnull(length(m.key), 0) + ifnull(length(m.headers), 0))
                    OVER (ORDER BY o.key) AS total
                FROM json_each(?) o CROSS JOIN message m ON m.seq = ? + o.value) WHERE total <= ?""",
            (_json(offsets).decode(), member.base, PAGE_BYTES),
        )[0]
        return offsets[: max(1, count)]

    # Settling

    def settle(self, member: Member, acknowledged: Sequence[int], released: Sequence[Give]) -> None:
        """Delete what was acknowledged, queue what was released, and let lanes go on that have become free."""
        parameters: dict[str, Any] = {"me": member.id, "group": member.group}
        parameters["acknowledged"] = _json(acknowledged).decode()
        parameters["released"] = _json(released).decode()
        queued, unnoted = self._row(
            """SELECT EXISTS (SELECT 1 FROM queued WHERE grp = :group),
                (SELECT unnoted FROM consumer_group WHERE id = :group)""",
            parameters,
        )
        if released and unnoted is not None:
            self._note_owners(member.group, member.base, unnoted)
        queued = queued or released
        if queued:
            self._note_lanes("off IN (SELECT value FROM json_each(:acknowledged))", parameters)
        if acknowledged:
            self._run(
                "DELETE FROM loan WHERE owner = :me AND off IN (SELECT value FROM json_each(:acknowledged))",
                parameters,
            )
        if released:
            # First those alone that were acknowledged: only a lane where something is released may have to step back.
            self._promote(member.group)
            self._release(parameters)
            self._step_back(member.group)
        if queued:
            self._promote(member.group)
            self.touched.add(member.topic)

    def mark(self, member: Member, offset: int, suspect: int) -> None:
        """Note beside a message that is handed out what its next delivery is to say."""
        self._run("UPDATE loan SET suspect = ? WHERE owner = ? AND off = ?", (suspect, member.id, offset))

    def _release(self, parameters: dict[str, Any]) -> None:
        released = "off IN (SELECT json_extract(value, '$[0]') FROM json_each(:released))"
        self._note_lanes(released, parameters)
        self._run(
            """INSERT INTO queued (grp, off, lane, due, attempt)
            SELECT l.grp, l.off, CASE WHEN json_extract(r.value, '$[3]') THEN NULL ELSE l.lane END,
                json_extract(r.value, '$[1]'), json_extract(r.value, '$[2]')
            FROM json_each(:released) r CROSS JOIN loan l ON l.owner = :me AND l.off = json_extract(r.value, '$[0]')""",
            parameters,
        )
        self._run(f"DELETE FROM loan WHERE owner = :me AND {released}", parameters)  # noqa: S608

    def _return_all(self, owner: int, group: int, attempts: int) -> None:
        """Queue all that a receiver holds, due now."""
        parameters = {"me": owner, "group": group, "now": steady(), "attempts": attempts}
        row = self._row("SELECT unnoted, topic FROM consumer_group WHERE id = ?", (group,))
        if row is not None and row[0] is not None:
            self._note_owners(group, row[1] << OFFSET_BITS, row[0])
        self._note_lanes("1", parameters)
        self._run(
            """INSERT INTO queued (grp, off, lane, due, attempt, suspect)
            SELECT grp, off, lane, :now, attempt + :attempts, suspect FROM loan WHERE owner = :me""",
            parameters,
        )
        self._run("DELETE FROM loan WHERE owner = :me", parameters)
        self._step_back(group)
        self._promote(group)

    def _note_lanes(self, condition: str, parameters: dict[str, Any]) -> None:
        """Remember the lanes of loans, which are about to go, for `_step_back` and `_promote`."""
        self._run("DELETE FROM temp.lanes")
        self._run(
            "INSERT INTO temp.lanes (lane) "  # noqa: S608
            f"SELECT DISTINCT lane FROM loan WHERE owner = :me AND lane IS NOT NULL AND {condition}",
            parameters,
        )

    def _step_back(self, group: int) -> None:
        """In the lanes noted only the first queued message stays free: the others wait for it, and for its back-off."""
        self._run(
            """UPDATE temp.lanes SET lowest = min(
                ifnull((SELECT off FROM queued q WHERE q.grp = :group AND q.lane = lanes.lane AND q.due IS NULL
                    ORDER BY q.off LIMIT 1), 1 << 62),
                ifnull((SELECT min(off) FROM queued q WHERE q.grp = :group AND q.lane = lanes.lane AND q.due >= 0),
                    1 << 62))""",
            {"group": group},
        )
        self._run(
            """UPDATE queued SET due = NULL WHERE grp = :group AND off IN (
                SELECT q.off FROM temp.lanes l CROSS JOIN queued q
                ON q.grp = :group AND q.lane = l.lane AND q.due >= 0 AND q.off > l.lowest)""",
            {"group": group},
        )

    def _promote(self, group: int) -> None:
        """In the lanes noted, where nothing is free or handed out, the next ones become free."""
        self._run(
            """UPDATE queued SET due = :now WHERE grp = :group AND off IN (
                SELECT q.off FROM temp.lanes l CROSS JOIN queued q
                ON q.grp = :group AND q.lane = l.lane AND q.due IS NULL AND q.off <= coalesce((
                    SELECT b.off FROM queued b WHERE b.grp = :group AND b.lane = l.lane AND b.due IS NULL
                    ORDER BY b.off LIMIT 1 OFFSET :promoted), 1 << 62)
                WHERE NOT EXISTS (SELECT 1 FROM queued f WHERE f.grp = :group AND f.lane = l.lane AND f.due >= 0)
                AND NOT EXISTS (SELECT 1 FROM loan o WHERE o.grp = :group AND o.lane = l.lane))""",
            {"group": group, "now": steady(), "promoted": PROMOTED - 1},
        )

    # Leases

    def renew(self, member: Member, now: float) -> None:
        """Renew a receiver's lease, which may have run out unnoticed while it held nothing."""
        expires = now + self._lease
        if self._run("UPDATE receiver SET expires = ? WHERE id = ?", (expires, member.id)):
            return
        exists = self._row("SELECT 1 FROM consumer_group WHERE id = ?", (member.group,))
        if member.held or exists is None:
            raise ConnectionLost(
                f"the receiver of group {member.group_name!r} on {member.topic_name!r} did not renew its lease in time"
            )
        self._run(
            "INSERT INTO receiver (id, grp, expires) VALUES (?, ?, ?)", (member.id, member.group, expires)
        )

    def keep_alive(self, members: Iterable[Member]) -> None:
        """Renew the leases of ephemeral groups, which would vanish although their process is well."""
        numbers = _json([member.id for member in members]).decode()
        expires = steady() + self._lease
        self._run(
            "UPDATE receiver SET expires = ? WHERE id IN (SELECT value FROM json_each(?))", (expires, numbers)
        )

    def reap(self, now: float, but: int = 0) -> None:
        """Take from receivers whose lease has run out what they hold; their ephemeral groups go."""
        first = self._row("SELECT min(expires) FROM receiver WHERE id <> ?", (but,))[0]
        if first is None or first > now:
            return
        dead = self.connection.execute(
            """SELECT r.id, g.id, g.topic, g.ephemeral FROM receiver r JOIN consumer_group g ON g.id = r.grp
            WHERE r.expires <= ? AND r.id <> ?""",
            (now, but),
        ).fetchall()
        for receiver, group, topic, ephemeral in dead:
            if ephemeral:
                self._drop_group(group)
            else:
                self._return_all(receiver, group, 1)
                self._run("DELETE FROM receiver WHERE id = ?", (receiver,))
            self.touched.add(topic)

    # What there is

    def topics(self) -> list[str]:
        """The names of all topics."""
        return [name for (name,) in self.connection.execute("SELECT name FROM topic ORDER BY name")]

    def groups(self) -> dict[str, list[str]]:
        """The groups of each topic that has any."""
        rows = self.connection.execute(
            """SELECT t.name, g.name FROM consumer_group g JOIN topic t ON t.id = g.topic
            WHERE NOT g.ephemeral ORDER BY t.name, g.name"""
        )
        found: dict[str, list[str]] = {}
        for topic, group in rows:
            found.setdefault(topic, []).append(group)
        return found

    # Lag and retention

    def lag(self, topic: str, group: str) -> int:
        """How many messages a group has not settled; a group that is missing would begin at the earliest."""
        row = self._row(
            """SELECT t.id, t.next, t.swept, g.id, g.cursor FROM topic t
            LEFT JOIN consumer_group g ON g.topic = t.id AND g.name = ? WHERE t.name = ?""",
            (group, topic),
        )
        if row is None:
            return 0
        number, beyond, swept, known, cursor = row
        base, start = number << OFFSET_BITS, cursor or 0
        # Above `swept` no message was ever deleted, so that offsets can be subtracted instead of rows counted.
        return int(
            self._row(
                """SELECT :whole + (SELECT count(*) FROM message WHERE seq >= :first AND seq < :swept)
                - (SELECT count(*) FROM message INDEXED BY message_targeted
                    WHERE target IS NOT NULL AND target <> :name AND seq >= :first AND seq < :beyond)
                + (SELECT count(*) FROM queued WHERE grp = :group)
                + (SELECT count(*) FROM receiver r JOIN loan l ON l.owner = r.id WHERE r.grp = :group)""",
                {
                    "whole": beyond - max(start, swept),
                    "first": base + start,
                    "swept": base + swept,
                    "beyond": base + beyond,
                    "name": group,
                    "group": known,
                },
            )[0]
        )

    def sweep(self, now: float) -> bool:
        """Delete some of what is old and settled by all groups of its topic; tells whether there is more to do."""
        self.reap(now)
        topics = self._row("SELECT json_group_array(id) FROM topic")[0]
        more = [self._sweep_topic(topic, now - self._retain) for topic in _offsets(topics)]
        return any(more)

    def _sweep_topic(self, topic: int, cutoff: float) -> bool:
        base, _ = _span(topic)
        parameters: dict[str, Any] = {"topic": topic, "base": base, "cutoff": cutoff, "most": SWEPT}
        parameters["first"] = base + self._swept_to.get(topic, 0)
        row = self._row(
            """SELECT max(seq), count(*) FROM (SELECT seq, stored FROM message WHERE seq >= :first
                AND seq < :base + (SELECT min(cursor) FROM consumer_group WHERE topic = :topic)
                ORDER BY seq LIMIT :most) WHERE stored < :cutoff""",
            parameters,
        )
        last, count = row
        self._swept_to[topic] = 0 if count < SWEPT else last - base + 1
        if last is None:
            return False
        parameters["last"] = last
        deleted = self._run(
            """DELETE FROM message AS m WHERE seq BETWEEN :first AND :last AND stored < :cutoff
            AND NOT EXISTS (SELECT 1 FROM consumer_group g CROSS JOIN queued q
                ON q.grp = g.id AND q.off = m.seq - :base WHERE g.topic = :topic)
            AND NOT EXISTS (SELECT 1 FROM consumer_group g CROSS JOIN receiver r ON r.grp = g.id
                CROSS JOIN loan l ON l.owner = r.id AND l.off = m.seq - :base WHERE g.topic = :topic)""",
            parameters,
        )
        if deleted:
            self._run("UPDATE topic SET swept = max(swept, :last - :base + 1) WHERE id = :topic", parameters)
        return bool(count == SWEPT)


def _span(topic: int) -> tuple[int, int]:
    return topic << OFFSET_BITS, (topic + 1) << OFFSET_BITS


def _vanished(member: Member) -> ConnectionLost:
    return ConnectionLost(f"the topic {member.topic_name!r} or its group {member.group_name!r} was removed")
