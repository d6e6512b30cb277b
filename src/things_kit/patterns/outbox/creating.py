"""Making tables with an SQLAlchemy engine."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from things_kit.brokers.postgres.schema import LOCK
from things_kit.patterns.outbox.writing import dialect_of


def create(engine: Any, ddl: Callable[[str], Sequence[str]], schema: str) -> Awaitable[None] | None:
    """Run the statements of the engine's dialect in one transaction; to be awaited with an `AsyncEngine`.

    Nobody else makes tables in that schema meanwhile: several may start at once, also beside the broker.
    """
    statements = ddl(dialect_of(engine))
    if hasattr(engine, "sync_engine"):
        return _create_async(engine, statements, schema)
    with engine.begin() as connection:
        _run(connection, statements, schema)
    return None


async def _create_async(engine: Any, statements: Sequence[str], schema: str) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(_run, statements, schema)


def _run(connection: Any, statements: Sequence[str], schema: str) -> None:
    from sqlalchemy import text  # noqa: PLC0415 - whoever has an engine has it

    if connection.dialect.name == "postgresql":  # where "IF NOT EXISTS" may fail beside another transaction
        connection.execute(text(LOCK.format(schema=":schema")), {"schema": schema})
    for statement in statements:  # without parameters a `%` in a name is no place for one
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
