"""Every kind of session, opened on a database: how a test begins, publishes, nests, commits and rolls back."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

import aiosqlite
import asyncpg
import psycopg
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from things_kit import Message
from things_kit.patterns import Outbox


class Given(NamedTuple):
    """A session, how its transaction ends, and a savepoint of it that is undone at its end."""

    session: Any
    commit: Callable[[], Awaitable[None]]
    rollback: Callable[[], Awaitable[None]]
    publish: Callable[..., Awaitable[None]]
    publish_batch: Callable[..., Awaitable[None]]

    @asynccontextmanager
    async def undone(self) -> AsyncIterator[None]:
        session = self.session() if hasattr(self.session, "registry") else self.session
        kind = type(session).__module__.partition(".")[0]
        if hasattr(session, "begin_nested"):  # SQLAlchemy's
            nested = session.begin_nested()
            nested = await nested if hasattr(nested, "__await__") else nested
            yield
            await _done(nested.rollback())
        elif kind == "asyncpg":
            nested = session.transaction()
            await nested.start()
            yield
            await nested.rollback()
        else:
            await _done(session.execute("SAVEPOINT a_part"))
            yield
            await _done(session.execute("ROLLBACK TO SAVEPOINT a_part"))


async def _done(what: Any) -> None:
    """Wait for it where it is asynchronous."""
    if hasattr(what, "__await__"):
        await what


Opening: TypeAlias = Callable[[str, Outbox], Any]


def asynchronous(session: Any, outbox: Outbox, commit: Any = None, rollback: Any = None) -> Given:
    async def publish(*what: Any, **fields: Any) -> None:
        await outbox.publish(session, *what, **fields)

    async def publish_batch(messages: list[Message], **times: Any) -> None:
        await outbox.publish_batch(session, messages, **times)

    return Given(session, commit or session.commit, rollback or session.rollback, publish, publish_batch)


def synchronous(session: Any, outbox: Outbox) -> Given:
    async def commit() -> None:
        session.commit()

    async def rollback() -> None:
        session.rollback()

    async def publish(*what: Any, **fields: Any) -> None:
        outbox.publish_sync(session, *what, **fields)

    async def publish_batch(messages: list[Message], **times: Any) -> None:
        outbox.publish_batch_sync(session, messages, **times)

    return Given(session, commit, rollback, publish, publish_batch)


def _sqlalchemy(driver: str, session: Callable[[Any], Any]) -> Opening:
    @asynccontextmanager
    async def opening(url: str, outbox: Outbox) -> AsyncIterator[Given]:
        engine = create_engine(url.replace("://", f"+{driver}://"), poolclass=NullPool)
        with session(engine) as opened:
            yield synchronous(opened, outbox)
        engine.dispose()

    return opening


def _sqlalchemy_async(driver: str, session: Callable[[Any], Any]) -> Opening:
    @asynccontextmanager
    async def opening(url: str, outbox: Outbox) -> AsyncIterator[Given]:
        engine = create_async_engine(url.replace("://", f"+{driver}://"), poolclass=NullPool)
        async with session(engine) as opened:
            yield asynchronous(opened, outbox)
        await engine.dispose()

    return opening


@asynccontextmanager
async def _sqlite3(url: str, outbox: Outbox) -> AsyncIterator[Given]:
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        yield synchronous(connection, outbox)


@asynccontextmanager
async def _aiosqlite(url: str, outbox: Outbox) -> AsyncIterator[Given]:
    async with aiosqlite.connect(url.removeprefix("sqlite:///")) as connection:
        yield asynchronous(connection, outbox)


@asynccontextmanager
async def _asyncpg(url: str, outbox: Outbox) -> AsyncIterator[Given]:
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    yield asynchronous(connection, outbox, transaction.commit, transaction.rollback)
    await connection.close()


@asynccontextmanager
async def _asyncpg_pool(url: str, outbox: Outbox) -> AsyncIterator[Given]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield asynchronous(connection, outbox, transaction.commit, transaction.rollback)


@asynccontextmanager
async def _psycopg(url: str, outbox: Outbox) -> AsyncIterator[Given]:
    with psycopg.connect(url) as connection:
        yield synchronous(connection, outbox)


@asynccontextmanager
async def _psycopg_async(url: str, outbox: Outbox) -> AsyncIterator[Given]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield asynchronous(connection, outbox)


class _OwnSession(Session):
    """An application's own, as SQLModel and Flask-SQLAlchemy have theirs."""


@contextlib.contextmanager
def _scoped(engine: Any) -> Iterator[Any]:
    sessions = scoped_session(sessionmaker(engine))
    yield sessions
    sessions.remove()


@asynccontextmanager
async def _scoped_async(engine: Any) -> AsyncIterator[Any]:
    sessions = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
    yield sessions
    await sessions.remove()


SQLITE: dict[str, Opening] = {
    "Session": _sqlalchemy("pysqlite", Session),
    "a Session's own class": _sqlalchemy("pysqlite", _OwnSession),
    "scoped_session": _sqlalchemy("pysqlite", _scoped),
    "Connection": _sqlalchemy("pysqlite", lambda engine: engine.connect()),
    "AsyncSession": _sqlalchemy_async("aiosqlite", AsyncSession),
    "async_scoped_session": _sqlalchemy_async("aiosqlite", _scoped_async),
    "AsyncConnection": _sqlalchemy_async("aiosqlite", lambda engine: engine.connect()),
    "sqlite3": _sqlite3,
    "aiosqlite": _aiosqlite,
}

POSTGRES: dict[str, Opening] = {
    "Session psycopg": _sqlalchemy("psycopg", Session),
    "Connection psycopg": _sqlalchemy("psycopg", lambda engine: engine.connect()),
    "AsyncSession asyncpg": _sqlalchemy_async("asyncpg", AsyncSession),
    "AsyncSession psycopg": _sqlalchemy_async("psycopg", AsyncSession),
    "AsyncConnection asyncpg": _sqlalchemy_async("asyncpg", lambda engine: engine.connect()),
    "asyncpg": _asyncpg,
    "asyncpg pool": _asyncpg_pool,
    "psycopg": _psycopg,
    "psycopg async": _psycopg_async,
}
