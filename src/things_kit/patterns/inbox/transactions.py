"""A transaction of an SQLAlchemy engine, asynchronous or not, behind one face."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from things_kit.engine.threads import call_in_thread
from things_kit.messaging.message import Message
from things_kit.patterns.outbox import Outbox
from things_kit.patterns.outbox.sessions import check_connection

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

Parameters: TypeAlias = Mapping[str, Any]


class Transaction(Protocol):
    """A connection whose transaction is open, and the session of the handler in it.

    The session's commit is that of a savepoint, and its rollback undoes what came after the last one.
    """

    session: Any

    async def execute(self, statement: str, parameters: Parameters) -> int:
        """Run a statement; returns how many rows it changed."""

    async def publish(self, outbox: Outbox, messages: Sequence[Message]) -> None:
        """Publish in this transaction."""

    async def open_session(self) -> None:
        """Begin what is the handler's."""

    async def close_session(self, *, keep: bool) -> None:
        """End it: what it has done is kept, or undone."""

    async def end(self, *, commit: bool) -> None:
        """Commit or roll back, and give the connection back."""


class AsyncTransaction:
    """Of an `AsyncEngine`."""

    session: "AsyncSession"

    def __init__(self, connection: "AsyncConnection") -> None:
        self._connection = connection

    @classmethod
    async def begin(cls, engine: "AsyncEngine") -> "AsyncTransaction":
        """Begin one."""
        connection = await engine.connect()
        try:
            await connection.begin()
            await connection.run_sync(check_connection)
        except BaseException:
            await connection.close()
            raise
        return cls(connection)

    async def execute(self, statement: str, parameters: Parameters) -> int:
        """Run a statement; returns how many rows it changed."""
        from sqlalchemy import text  # noqa: PLC0415 - whoever has an engine has it

        return int((await self._connection.execute(text(statement), dict(parameters))).rowcount)

    async def publish(self, outbox: Outbox, messages: Sequence[Message]) -> None:
        """Publish in this transaction."""
        await outbox.publish_batch(self._connection, messages)

    async def open_session(self) -> None:
        """Begin what is the handler's."""
        from sqlalchemy.ext.asyncio import AsyncSession  # noqa: PLC0415

        self.session = AsyncSession(
            self._connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        )

    async def close_session(self, *, keep: bool) -> None:
        """End it: what it has done is kept, or undone."""
        if keep:
            await self.session.commit()
        await self.session.close()

    async def end(self, *, commit: bool) -> None:
        """Commit or roll back, and give the connection back."""
        try:
            await (self._connection.commit() if commit else self._connection.rollback())
        finally:
            await self._connection.close()


class SyncTransaction:
    """Of an `Engine`: everything happens in threads, one after another."""

    session: "Session"

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    @classmethod
    async def begin(cls, engine: "Engine") -> "SyncTransaction":
        """Begin one."""

        def connect() -> "Connection":
            connection = engine.connect()
            try:
                connection.begin()
                check_connection(connection)
            except BaseException:
                connection.close()
                raise
            return connection

        return cls(await call_in_thread(connect))

    async def execute(self, statement: str, parameters: Parameters) -> int:
        """Run a statement; returns how many rows it changed."""
        from sqlalchemy import text  # noqa: PLC0415

        result = await call_in_thread(self._connection.execute, text(statement), dict(parameters))
        return int(result.rowcount)

    async def publish(self, outbox: Outbox, messages: Sequence[Message]) -> None:
        """Publish in this transaction."""
        await call_in_thread(outbox.publish_batch_sync, self._connection, messages)

    async def open_session(self) -> None:
        """Begin what is the handler's."""
        from sqlalchemy.orm import Session  # noqa: PLC0415

        self.session = Session(
            self._connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        )

    async def close_session(self, *, keep: bool) -> None:
        """End it: what it has done is kept, or undone."""
        if keep:
            await call_in_thread(self.session.commit)
        await call_in_thread(self.session.close)

    async def end(self, *, commit: bool) -> None:
        """Commit or roll back, and give the connection back."""

        def end() -> None:
            with self._connection as connection:  # which is closed afterwards
                (connection.commit if commit else connection.rollback)()

        await call_in_thread(end)
