"""An outbox gets along with what an application has set: rows and cursors of its own, who begins transactions, any schema."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite
import asyncpg
import psycopg
import pytest
from psycopg.rows import class_row
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from things_kit import ConfigError, Message, connect
from things_kit.engine.broker import Broker
from things_kit.patterns import Inbox, Outbox

MESSAGE = Message("orders", b"1", b"k")
OUTBOX = Outbox(lock_keys=True)
ANY_NAME = """sh"op's :x 50%s? é"""


@dataclass
class Amount:
    """What an application makes of its rows, and of no other."""

    amount: int


def as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


@pytest.fixture
async def broker(database: str) -> AsyncIterator[Broker]:
    async with connect(database) as broker:
        await broker.declare("orders", ["g"])
        yield broker


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_rows_of_a_sqlite_connection_may_be_anything(broker: Broker, database: str) -> None:
    path = database.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = as_dict
        OUTBOX.publish_sync(connection, MESSAGE)
        connection.commit()
    async with aiosqlite.connect(path) as opened:
        opened.row_factory = as_dict  # type: ignore[assignment] # it says that it takes a type
        await OUTBOX.publish(opened, MESSAGE)
        await opened.commit()
    assert await broker.lag("orders", "g") == 2


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_rows_and_cursors_of_a_psycopg_connection_may_be_anything(
    broker: Broker, database: str
) -> None:
    with psycopg.connect(database, row_factory=class_row(Amount)) as connection:
        OUTBOX.publish_sync(connection, MESSAGE)
    with psycopg.connect(database, cursor_factory=psycopg.RawCursor) as raw:
        OUTBOX.publish_sync(raw, MESSAGE)
    async with await psycopg.AsyncConnection.connect(
        database, row_factory=class_row(Amount), cursor_factory=psycopg.AsyncRawCursor
    ) as opened:
        await OUTBOX.publish(opened, MESSAGE)
    assert await broker.lag("orders", "g") == 3


COMMITS_ALONE = {"sqlite": {"isolation_level": None}, "postgresql": {"autocommit": True}}
"""What has a driver commit every statement, though SQLAlchemy knows nothing of it."""


def with_driver(url: str, sqlite: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}+{sqlite if scheme == 'sqlite' else 'psycopg'}://{rest}"


async def test_a_driver_that_commits_every_statement_below_sqlalchemy_is_refused(
    broker: Broker, database: str
) -> None:
    settings = COMMITS_ALONE[database.partition(":")[0]]
    engine = create_engine(with_driver(database, "pysqlite"), connect_args=settings, poolclass=NullPool)
    waiting = create_async_engine(
        with_driver(database, "aiosqlite"), connect_args=settings, poolclass=NullPool
    )
    with engine.connect() as connection, Session(engine) as session:
        for each in (connection, session):
            with pytest.raises(ConfigError, match="below SQLAlchemy's commits every statement"):
                OUTBOX.publish_sync(each, MESSAGE)
    async with waiting.connect() as opened, AsyncSession(waiting) as other:
        for waits in (opened, other):
            with pytest.raises(ConfigError, match="below SQLAlchemy's commits every statement"):
                await OUTBOX.publish(waits, MESSAGE)
    assert await broker.lag("orders", "g") == 0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_who_begins_transactions_by_an_event_of_sqlalchemy_publishes_in_them(
    broker: Broker, database: str
) -> None:
    engine = create_engine(database, connect_args={"isolation_level": None}, poolclass=NullPool)
    waiting = create_async_engine(
        with_driver(database, "aiosqlite"), connect_args={"isolation_level": None}, poolclass=NullPool
    )
    for each in (engine, waiting.sync_engine):
        begins_itself(each)
    for end in (Connection.rollback, Connection.commit):
        with engine.connect() as connection:
            OUTBOX.publish_sync(connection, MESSAGE)
            end(connection)
    async with waiting.connect() as opened:
        await OUTBOX.publish(opened, MESSAGE)
        await opened.commit()
    assert await broker.lag("orders", "g") == 2


def begins_itself(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_schema_may_have_any_name(database: str) -> None:
    outbox = Outbox(ANY_NAME, lock_keys=True)
    engine = create_engine(with_driver(database, ""), poolclass=NullPool)
    waiting = create_async_engine(database.replace("://", "+asyncpg://"), poolclass=NullPool)
    outbox.create(engine)
    outbox.metadata.create_all(engine)
    with Session(engine) as session:
        outbox.publish_sync(session, MESSAGE)
        session.commit()
    with psycopg.connect(database) as connection:
        outbox.publish_sync(connection, MESSAGE)
    plain = await asyncpg.connect(database)
    async with plain.transaction():
        await outbox.publish(plain, MESSAGE)
    await plain.close()
    inbox = Inbox(waiting, outbox=outbox)
    assert await inbox.forget("g", "orders", "1") == 0
    assert await inbox.sweep() == 0

    async def handle(message: Message, session: AsyncSession) -> None:
        await outbox.publish(session, message.replace(topic="bills", id=None))

    async with connect(f"{database}?schema={quote(ANY_NAME, safe='')}") as broker:
        await broker.declare("bills", ["g"])
        async with broker.consumer("orders", group="g", handler=handle, middleware=[inbox]):
            while await broker.lag("bills", "g") != 3:  # noqa: ASYNC110 - only the broker knows
                await asyncio.sleep(0.01)
    await waiting.dispose()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Outbox("x" * 64).ddl("postgresql"), "of 1 to 63 bytes"),
        (lambda: Outbox("pg_shop").ddl("postgresql"), "must not begin with pg_"),
        (lambda: Outbox("my shop").ddl("sqlite"), "letters, digits and underscores"),
        (lambda: Outbox(topic_prefix="*"), "must not look like a pattern"),
        (lambda: Outbox(topic_prefix="x" * 65), "at most 64 bytes"),
        (
            lambda: Outbox().create("sqlite:///app.db"),
            "takes SQLAlchemy's Engine or AsyncEngine; it was given 'sqlite",
        ),
        (lambda: Inbox("sqlite:///app.db"), "takes SQLAlchemy's Engine or AsyncEngine"),  # type: ignore[arg-type]
    ],
)
def test_what_can_be_no_name_or_engine_is_refused(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_a_relay_of_a_broker_with_another_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reads the schema 'things_kit', and the outbox writes 'shop'"):
        Outbox("shop").relay(connect(f"sqlite:///{tmp_path}/app.db"), "memory://", ["orders"])
