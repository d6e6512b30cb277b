"""What Alembic's autogenerate writes for tables of the broker that are missing: the statements that connecting runs.

Alembic knows neither schemas nor partitions, and would need types imported that only this library has. So a migration makes
the tables by the same statements as everybody else. It has no part in what differs in tables that are there.
"""

import re
from typing import Any

from alembic import util
from alembic.autogenerate import comparators, renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import Operations
from alembic.operations.ops import CreateTableOp, MigrateOperation, ModifyTableOps, UpgradeOps

from things_kit.brokers.postgres.schema import quoted
from things_kit.patterns.outbox.tables import OURS
from things_kit.patterns.outbox.writing import ddl


class RunStatements(MigrateOperation):
    """Runs some statements, and others to undo it."""

    def __init__(self, statements: list[str], undoing: list[str]) -> None:
        self.statements, self.undoing = statements, undoing

    def reverse(self) -> "RunStatements":
        """What undoes it."""
        return RunStatements(self.undoing, self.statements)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """As `compare_metadata` tells it."""
        return ("run_statements", self.statements)


@Operations.implementation_for(RunStatements)
def _run(operations: Operations, operation: RunStatements) -> None:
    for statement in operation.statements:
        operations.execute(_escaped(statement))


@renderers.dispatch_for(RunStatements)
def _render(_: AutogenContext, operation: RunStatements) -> list[str]:
    return [f"op.execute({_escaped(statement)!r})" for statement in operation.statements]


def _escaped(statement: str) -> str:
    """As SQLAlchemy's `text` wants it: what looks like a parameter is part of a schema's name."""
    return re.sub(r"(?<![:\w\\]):(?=\w+(?!:))", r"\:", statement)


def _compare(_: AutogenContext, upgrade: UpgradeOps, __: object) -> None:
    """Replace what would make tables of a broker by the broker's own statements."""
    making: dict[tuple[str, str], list[str]] = {}
    for operation in upgrade.ops:
        if isinstance(operation, CreateTableOp) and OURS in operation.info:
            making.setdefault(operation.info[OURS], []).append(operation.table_name)
    for (dialect, schema), tables in making.items():
        inside = None if dialect == "sqlite" else schema
        upgrade.ops[:] = [each for each in upgrade.ops if not _is_of(each, inside, tables)]
        upgrade.ops.insert(0, RunStatements(ddl(dialect, schema), _dropping(dialect, schema, tables)))


def _is_of(operation: MigrateOperation, schema: str | None, tables: list[str]) -> bool:
    return (
        isinstance(operation, CreateTableOp | ModifyTableOps)
        and operation.schema == schema
        and operation.table_name in tables
    )


def _dropping(dialect: str, schema: str, tables: list[str]) -> list[str]:
    if dialect == "sqlite":
        return [f"DROP TABLE IF EXISTS {table}" for table in tables]
    return [f"DROP SCHEMA IF EXISTS {quoted(schema)} CASCADE"]


# Since 1.18 the order has names; before, what was registered last came last.
_last: dict[str, Any] = {"priority": util.DispatchPriority.LAST} if hasattr(util, "DispatchPriority") else {}
comparators.dispatch_for("schema", **_last)(_compare)
