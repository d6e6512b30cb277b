"""Making tables with an SQLAlchemy engine."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any


def create(engine: Any, ddl: Callable[[str], Sequence[str]]) -> Awaitable[None] | None:
    """Run the statements of the engine's dialect in one transaction; to be awaited with an `AsyncEngine`."""
    statements = ddl(engine.dialect.name)
    if hasattr(engine, "sync_engine"):
        return _create_async(engine, statements)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    return None


async def _create_async(engine: Any, statements: Sequence[str]) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)
