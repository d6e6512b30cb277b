"""Marks in a table, by SQLAlchemy."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    Double,
    Engine,
    MetaData,
    String,
    Table,
    delete,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from things_kit.messaging.errors import ConfigError
from things_kit.middleware.marks import Claim

metadata: Final = MetaData()
"""For Alembic: what `create` makes."""

table: Final = Table(
    "things_kit_deduplicate",
    metadata,
    Column("mark", String(64), primary_key=True),
    Column("owner", String(64), nullable=True),  # none once it was handled
    Column("expires", Double, nullable=False, index=True),  # seconds since 1970
)

SWEEP: Final = 60.0
"""Seconds between two deletions of what has expired."""


class SQLMarks:
    """Marks in a database that all processes share; their clocks must agree to within a second."""

    def __init__(self, engine: Any) -> None:
        if not isinstance(engine, Engine | AsyncEngine):
            raise ConfigError(f"deduplicate takes an Engine or an AsyncEngine; it was given {engine!r}")
        self._engine = engine
        self._swept = 0.0

    async def claim(self, mark: str, owner: str, lease: float, /) -> Claim:
        """See `Marks.claim`."""
        now = time.time()
        if now - self._swept > SWEEP:
            self._swept = now
            await self._run(lambda connection: connection.execute(delete(table).where(table.c.expires < now)))
        while True:
            try:
                await self._run(lambda connection: _take(connection, mark, owner, now, lease))
            except IntegrityError:
                found = await self._run(
                    lambda connection: connection.execute(
                        select(table.c.owner).where(table.c.mark == mark, table.c.expires >= now)
                    ).first()
                )
                if found is None:
                    continue
                return "done" if found[0] is None else "ours" if found[0] == owner else "taken"
            return "ours"

    async def renew(self, mark: str, owner: str, lease: float, /) -> None:
        """See `Marks.renew`."""
        expires = time.time() + lease
        mine = (table.c.mark == mark) & (table.c.owner == owner)
        await self._run(
            lambda connection: connection.execute(update(table).where(mine).values(expires=expires))
        )

    async def done(self, mark: str, owner: str, window: float, /) -> None:
        """See `Marks.done`."""
        del owner
        expires = time.time() + window
        await self._run(lambda connection: _keep(connection, mark, expires))

    async def release(self, mark: str, owner: str, /) -> None:
        """See `Marks.release`."""
        mine = (table.c.mark == mark) & (table.c.owner == owner)
        await self._run(lambda connection: connection.execute(delete(table).where(mine)))

    async def look(self) -> None:
        """Raises ConfigError where the table is missing."""
        if not await self._run(lambda connection: inspect(connection).has_table(table.name)):
            raise ConfigError(
                f"the table {table.name} of deduplicate is missing in {self._engine.url!r}: await its create(), or give "
                "Alembic things_kit.middleware.sql_marks.metadata"
            )

    async def create(self) -> None:
        """Make the table where it is missing."""
        await self._run(metadata.create_all)

    async def _run(self, work: Callable[[Connection], Any]) -> Any:
        """In a transaction of its own."""
        engine = self._engine
        if isinstance(engine, AsyncEngine):
            async with engine.begin() as connection:
                return await connection.run_sync(work)
        return await asyncio.to_thread(_in_thread, engine, work)


def _in_thread(engine: Engine, work: Callable[[Connection], Any]) -> Any:
    with engine.begin() as connection:
        return work(connection)


def _take(connection: Connection, mark: str, owner: str, now: float, lease: float) -> None:
    """Raises IntegrityError where it is somebody's."""
    connection.execute(delete(table).where(table.c.mark == mark, table.c.expires < now))
    connection.execute(insert(table).values(mark=mark, owner=owner, expires=now + lease))


def _keep(connection: Connection, mark: str, expires: float) -> None:
    kept = connection.execute(update(table).where(table.c.mark == mark).values(owner=None, expires=expires))
    if not kept.rowcount:  # it had expired
        connection.execute(insert(table).values(mark=mark, owner=None, expires=expires))
