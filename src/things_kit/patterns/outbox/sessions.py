"""The sessions and connections of others: whose transaction is open, and how a statement is run in it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from things_kit.messaging.errors import ConfigError
from things_kit.patterns.outbox.writing import Dialect, Place, Steps, known

Run: TypeAlias = Callable[[str, Sequence[Any]], Any]
"""Runs a statement, whose places are as the driver wants them, and gives its first row, or None."""


class Transaction(msgspec.Struct, frozen=True):
    """An open transaction: the dialect of its database, how a driver writes the place of a parameter, and what runs."""

    dialect: Dialect
    place: Place
    run: Run


def run(steps: Steps, transaction: Transaction) -> None:
    """Run all statements, one after another."""
    row = None
    try:
        while True:
            statement, parameters = steps.send(row)
            row = transaction.run(statement, parameters)
    except StopIteration:
        return
    except Exception as error:
        raise _explained(error) from error


async def run_async(steps: Steps, transaction: Transaction) -> None:
    """Run all statements, one after another."""
    row = None
    try:
        while True:
            try:
                statement, parameters = steps.send(row)
            except StopIteration:
                return
            row = await transaction.run(statement, parameters)
    except Exception as error:
        raise _explained(error) from error


def _explained(error: Exception) -> Exception:
    """A sentence where the tables are missing; everything else is as the driver raises it."""
    inner: BaseException | None = error
    while inner is not None:
        missing = getattr(inner, "sqlstate", None) in {"42P01", "3F000"} or "no such table" in str(inner)
        if missing and not isinstance(inner, ConfigError):
            return ConfigError(
                f"the outbox's tables are missing ({inner}): connect to the broker once, run outbox.create(engine), or "
                "let Alembic make them"
            )
        inner = getattr(inner, "orig", None) or inner.__cause__
    return error


def kind_of(session: object) -> str:
    """What it is: the package and the class, such as "sqlalchemy.AsyncSession"; also that of a class made from it."""
    for each in type(session).__mro__:
        name = f"{each.__module__.partition('.')[0]}.{each.__name__}"
        if name in SYNCHRONOUS or name in ASYNCHRONOUS:
            return name
    raise ConfigError(
        f"an outbox publishes in the transaction of SQLAlchemy's sessions and connections, asyncpg's, psycopg's, sqlite3's "
        f"and aiosqlite's connections, and Django's; not of {type(session).__module__}.{type(session).__qualname__}"
    )


def opened(session: Any) -> Transaction:
    """The transaction of a synchronous session, begun if it is one that begins by itself. Raises ConfigError."""
    kind = kind_of(session)
    if kind not in SYNCHRONOUS:
        raise ConfigError(f"{kind} is asynchronous: await outbox.publish with it")
    return SYNCHRONOUS[kind](session)


async def opened_async(session: Any) -> Transaction:
    """The transaction of an asynchronous session, begun if it is one that begins by itself. Raises ConfigError."""
    kind = kind_of(session)
    if kind not in ASYNCHRONOUS:
        raise ConfigError(f"{kind} is synchronous: use outbox.publish_sync with it")
    return await ASYNCHRONOUS[kind](session)


def _autocommit(whose: str, how: str) -> ConfigError:
    return ConfigError(
        f"{whose} commits every statement by itself and has no transaction open: {how} first, or the message would be there "
        "whatever becomes of the rest"
    )


# --- SQLAlchemy


def _orm_session(session: Any) -> Transaction:
    session = session() if hasattr(session, "registry") else session  # a scoped one
    if session.twophase:
        raise _two_phase()
    return _sa_connection(session.connection())


def _sa_connection(connection: Any) -> Transaction:
    check_connection(connection)

    def execute(statement: str, parameters: Sequence[Any]) -> Any:
        result = connection.exec_driver_sql(statement, tuple(parameters))
        return result.first() if result.returns_rows else None

    return Transaction(known(connection.dialect.name), _place(connection.dialect), execute)


async def _async_session(session: Any) -> Transaction:
    session = session() if hasattr(session, "registry") else session
    if session.sync_session.twophase:
        raise _two_phase()
    return await _sa_async_connection(await session.connection())


async def _sa_async_connection(connection: Any) -> Transaction:
    await connection.run_sync(check_connection)

    async def execute(statement: str, parameters: Sequence[Any]) -> Any:
        result = await connection.exec_driver_sql(statement, tuple(parameters))
        return result.first() if result.returns_rows else None

    return Transaction(known(connection.dialect.name), _place(connection.dialect), execute)


def check_connection(connection: Any) -> None:
    """Raise ConfigError for an SQLAlchemy connection whose transaction would not commit what we write with the rest."""
    from sqlalchemy import TwoPhaseTransaction  # noqa: PLC0415 - whoever has such a connection has it

    if isinstance(connection.get_transaction(), TwoPhaseTransaction):
        raise _two_phase()
    level = connection.get_execution_options().get("isolation_level")
    level = level or getattr(connection.dialect, "_on_connect_isolation_level", None)
    if level == "AUTOCOMMIT":
        raise _autocommit("SQLAlchemy's connection of isolation level AUTOCOMMIT", "choose another level")
    if not (_begins(connection.connection.driver_connection) or _begun(connection)):
        raise _autocommit("the driver's connection below SQLAlchemy's", "have it begin transactions")


def _begun(connection: Any) -> bool:
    """Whether SQLAlchemy's begin opens a transaction, where the driver would not by itself: an event's listener may."""
    begins = not connection.in_transaction()
    if begins:
        connection.begin()
    driver = connection.connection.driver_connection
    if getattr(driver, "in_transaction", False):
        return True
    if begins:
        connection.rollback()
    return False


def _two_phase() -> ConfigError:
    return ConfigError("an outbox does not take part in SQLAlchemy's two-phase transactions: use a plain one")


def _place(dialect: Any) -> Place:
    places: dict[str, Place] = {"qmark": "?", "pyformat": "%s", "format": "%s"}
    return places.get(dialect.paramstyle, "$")


# --- plain connections


def _begins(connection: Any) -> bool:
    """Whether what a driver's connection runs next is in a transaction, which is open or begins with it."""
    plain = getattr(connection, "_conn", connection)  # aiosqlite's is around sqlite3's
    commits = getattr(plain, "autocommit", False) is True
    if hasattr(plain, "in_transaction"):
        return bool(plain.in_transaction) or not (commits or plain.isolation_level is None)
    status = getattr(getattr(plain, "info", None), "transaction_status", None)  # psycopg's
    return not commits or getattr(status, "name", "IDLE") != "IDLE"


def _sqlite3(connection: Any) -> Transaction:
    if not _begins(connection):
        raise _autocommit("this sqlite3 connection", 'execute("BEGIN")')

    def execute(statement: str, parameters: Sequence[Any]) -> Any:
        cursor = connection.cursor()
        cursor.row_factory = None  # the connection's own may make anything of a row
        return cursor.execute(statement, parameters).fetchone()

    return Transaction("sqlite", "?", execute)


async def _aiosqlite(connection: Any) -> Transaction:
    if not _begins(connection):
        raise _autocommit("this aiosqlite connection", 'await execute("BEGIN")')

    async def execute(statement: str, parameters: Sequence[Any]) -> Any:
        async with connection.cursor() as cursor:
            cursor.row_factory = None  # as above
            await cursor.execute(statement, parameters)
            return await cursor.fetchone()

    return Transaction("sqlite", "?", execute)


async def _asyncpg(connection: Any) -> Transaction:
    if not (connection.is_in_transaction() or connection.is_closed()):  # the driver says that it is closed
        raise _autocommit("this asyncpg connection", "enter its transaction()")

    async def execute(statement: str, parameters: Sequence[Any]) -> Any:
        return await connection.fetchrow(statement, *parameters)

    return Transaction("postgresql", "$", execute)


def _psycopg(connection: Any) -> Transaction:
    from psycopg import Cursor  # noqa: PLC0415 - whoever has such a connection has it
    from psycopg.rows import tuple_row  # noqa: PLC0415

    if not _begins(connection):
        raise _autocommit("this psycopg connection", "enter its transaction()")

    def execute(statement: str, parameters: Sequence[Any]) -> Any:
        # Not the connection's own kind of cursor, which may want other places, nor its rows, which may be anything
        with Cursor(connection, row_factory=tuple_row) as cursor:
            cursor.execute(statement, parameters)
            return None if cursor.description is None else cursor.fetchone()

    return Transaction("postgresql", "%s", execute)


async def _psycopg_async(connection: Any) -> Transaction:
    from psycopg import AsyncCursor  # noqa: PLC0415 - as above
    from psycopg.rows import tuple_row  # noqa: PLC0415

    if not _begins(connection):
        raise _autocommit("this psycopg connection", "enter its transaction()")

    async def execute(statement: str, parameters: Sequence[Any]) -> Any:
        async with AsyncCursor(connection, row_factory=tuple_row) as cursor:
            await cursor.execute(statement, parameters)
            return None if cursor.description is None else await cursor.fetchone()

    return Transaction("postgresql", "%s", execute)


def _django(connection: Any) -> Transaction:
    dialect = known(connection.vendor)
    if not connection.in_atomic_block and connection.get_autocommit():
        raise _autocommit("Django's connection", "enter transaction.atomic()")

    def execute(statement: str, parameters: Sequence[Any]) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return None if cursor.description is None else cursor.fetchone()

    return Transaction(dialect, "%s", execute)


SYNCHRONOUS: Final[dict[str, Callable[[Any], Transaction]]] = {
    "sqlalchemy.Session": _orm_session,
    "sqlalchemy.scoped_session": _orm_session,
    "sqlalchemy.Connection": _sa_connection,
    "sqlite3.Connection": _sqlite3,
    "psycopg.Connection": _psycopg,
    "django.BaseDatabaseWrapper": _django,
    "django.ConnectionProxy": _django,
}

ASYNCHRONOUS: Final[dict[str, Callable[[Any], Awaitable[Transaction]]]] = {
    "sqlalchemy.AsyncSession": _async_session,
    "sqlalchemy.async_scoped_session": _async_session,
    "sqlalchemy.AsyncConnection": _sa_async_connection,
    "aiosqlite.Connection": _aiosqlite,
    "asyncpg.Connection": _asyncpg,
    "asyncpg.PoolConnectionProxy": _asyncpg,
    "psycopg.AsyncConnection": _psycopg_async,
}
