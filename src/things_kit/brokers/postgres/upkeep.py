"""The tables are made, brought to this version and kept tidy by whoever may; all others use what is there."""

import contextlib
from typing import Any, Final

import asyncpg

from things_kit.brokers.postgres.connections import Connections
from things_kit.brokers.postgres.functions import functions
from things_kit.brokers.postgres.schema import LOCK, SCHEMA_VERSION, ddl, quoted
from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError

DAY: Final = 24
"""The width of a partition in hours; what is kept for less than two days has partitions of an hour."""

AHEAD: Final = 2
"""How many partitions wait for their time to come, so that a role that may make none can go on for so long."""

PATIENCE: Final = "SET LOCAL lock_timeout = '200ms'"
"""For locks on whole tables: behind whoever waits for one everybody else waits too."""

LATER: Final = (asyncpg.LockNotAvailableError, asyncpg.CheckViolationError)
"""What may go well another time: somebody has the lock, or has just published into what is to be a partition."""


class Upkeep:
    """One schema."""

    def __init__(self, connections: Connections, schema: str, retain: float) -> None:
        self._connections = connections
        self._schema = schema
        self._s = quoted(schema)
        self._retain = retain
        self._width = DAY if retain >= 2 * DAY * 3600 else 1
        self.may_create = True

    async def prepare(self, *, creates: bool) -> None:
        """Have the tables there. Raises ConfigError where they are another version's, or missing and not to be made."""
        version = await self._version()
        if version is None and not creates:
            raise ConfigError(f"the schema {self._schema!r} has no tables of the broker, and declare is off")
        if version is None or version < SCHEMA_VERSION:
            await self._make()
            version = await self._version()
        if version is None or version > SCHEMA_VERSION:
            raise ConfigError(
                f"the tables in the schema {self._schema!r} are of a newer version of this library "
                f"(version {version}; known is {SCHEMA_VERSION})"
            )

    async def _version(self) -> int | None:
        doing = f"looking for the tables in the schema {self._schema!r}"
        name = f"{self._s}.installation"
        if (await self._connections.row(doing, "SELECT to_regclass($1) IS NULL", name))[0]:
            return None
        rows = await self._connections.rows(doing, f"SELECT version FROM {name}")  # noqa: S608 - an identifier
        return int(rows[0][0]) if rows else None

    async def _make(self) -> None:
        """All that is missing, in one transaction, while nobody else does; starting at once is fine."""
        doing = f"making the tables in the schema {self._schema!r}"
        async with self._connections.use(doing, within=60.0) as connection, connection.transaction():
            await self._lock(connection)
            if not await connection.fetchval(
                "SELECT count(*) FROM pg_namespace WHERE nspname = $1", self._schema
            ):
                await connection.execute(f"CREATE SCHEMA {self._s}")
            for statement in (*ddl(self._schema), *functions(self._schema)):
                await connection.execute(statement)
            with contextlib.suppress(*LATER):
                async with connection.transaction():
                    await self._add_partitions(connection)
            await connection.execute(
                f"INSERT INTO {self._s}.installation (version) VALUES ($1) "  # noqa: S608
                "ON CONFLICT (one) DO UPDATE SET version = greatest(installation.version, excluded.version)",
                SCHEMA_VERSION,
            )

    async def _lock(self, connection: Any) -> None:
        """Be the only one that makes tables, until the end of the transaction."""
        await connection.execute(LOCK.format(schema="$1"), self._schema)

    async def sweep(self) -> None:
        """Give places to what nobody has looked at, forget what is old and settled, and see to the partitions, where we may.

        What is locked waits for another time.
        """
        # Apart, as the other locks groups: who locks a topic and a group locks the topic first, and of several the first first
        places = f"SELECT {self._s}.place(id) FROM (SELECT id FROM {self._s}.topic ORDER BY id) t"  # noqa: S608 - an identifier
        await self._connections.rows("giving messages their places", places, within=60.0)
        await self._connections.rows("sweeping", f"SELECT {self._s}.sweep($1)", self._retain, within=60.0)
        if not self.may_create:
            return
        try:
            await self._tend_partitions()
        except ConfigError:
            self.may_create = False
        except ConnectionLost as lost:
            if not isinstance(lost.__cause__, LATER):
                raise

    async def _tend_partitions(self) -> None:
        async with self._connections.use("keeping the partitions") as connection:
            now, known = await self._hour(connection), await self._partitions(connection)
        if max((high for _, high in known.values()), default=0) <= now + self._width:
            async with self._connections.use("making partitions") as connection, connection.transaction():
                await self._lock(connection)
                await self._add_partitions(connection)
        for name in [name for name, (_, high) in known.items() if high <= now]:
            async with self._connections.use("dropping a partition") as connection, connection.transaction():
                await self._drop_if_settled(connection, name, *known[name])

    async def _hour(self, connection: Any) -> int:
        return int(await connection.fetchval("SELECT floor(date_part('epoch', now()) / 3600)::int"))

    async def _partitions(self, connection: Any) -> dict[str, tuple[int, int]]:
        """Each partition of the messages but the default one, with its first hour and the one after its last."""
        rows = await connection.fetch(
            """SELECT c.relname, (regexp_match(pg_get_expr(c.relpartbound, c.oid),
                'FROM \\(''?(-?\\d+)''?\\) TO \\(''?(-?\\d+)''?\\)'))::int[] AS bounds
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass($1)""",
            f"{self._s}.message",
        )
        return {row[0]: (row[1][0], row[1][1]) for row in rows if row[1]}

    async def _add_partitions(self, connection: Any) -> None:
        """Those of now and of what comes next. Made apart and attached: that waits for nobody who publishes elsewhere.

        Of an hour that has messages in the default partition there can be none.
        """
        await connection.execute(PATIENCE)
        known, now = await self._partitions(connection), await self._hour(connection)
        low = max([now - 1, *(high for _, high in known.values())])
        last = await connection.fetchval(f"SELECT max(bucket) FROM {self._s}.message_default")  # noqa: S608
        if last is not None:
            low = max(low, now + 1, last + 1)
        while low <= now + AHEAD * self._width:
            high = (low // self._width + 1) * self._width
            name = f"{self._s}.{quoted(f'message_{low}_{high}')}"
            await connection.execute(
                f"CREATE TABLE {name} (LIKE {self._s}.message INCLUDING DEFAULTS INCLUDING CONSTRAINTS) "
                "WITH (autovacuum_vacuum_insert_scale_factor = 0.05)"
            )
            await connection.execute(
                f"ALTER TABLE {self._s}.message ATTACH PARTITION {name} FOR VALUES FROM ({low}) TO ({high})"
            )
            low = high

    async def _drop_if_settled(self, connection: Any, name: str, low: int, high: int) -> None:
        """Nobody may be writing into it: an open transaction keeps its partition, and no other."""
        partition = f"{self._s}.{quoted(name)}"
        needed = f"SELECT EXISTS (SELECT FROM {self._s}.segment WHERE low < $2 AND high >= $1)"  # noqa: S608
        if await connection.fetchval(needed, low, high):
            return
        await connection.execute(PATIENCE)
        await connection.execute(f"LOCK TABLE {partition} IN ACCESS EXCLUSIVE MODE")
        # Topic by topic, each found by the index: reading the whole partition would keep everybody waiting.
        unplaced = f"""WITH RECURSIVE topics AS (
                SELECT min(topic) AS name FROM {partition} UNION ALL
                SELECT (SELECT min(topic) FROM {partition} WHERE topic > topics.name) FROM topics WHERE name IS NOT NULL)
            SELECT EXISTS (SELECT FROM topics LEFT JOIN {self._s}.topic t USING (name) WHERE name IS NOT NULL AND (
                t.id IS NULL
                OR EXISTS (SELECT FROM {partition} WHERE topic = name AND xid >= pg_snapshot_xmax(t.seen))
                OR EXISTS (SELECT FROM {partition}
                    WHERE topic = name AND xid = ANY (ARRAY(SELECT pg_snapshot_xip(t.seen))))))"""  # noqa: S608
        if await connection.fetchval(unplaced) or await connection.fetchval(needed, low, high):
            return
        # The space is given back though the drop, which needs the whole table for a moment, may have to wait
        await connection.execute(f"TRUNCATE {partition}")
        with contextlib.suppress(*LATER):
            async with connection.transaction():
                await connection.execute(f"DROP TABLE {partition}")
