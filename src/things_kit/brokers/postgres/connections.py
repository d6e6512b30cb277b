"""Connections to the server: a few, each in use by one call at a time, and thrown away when in doubt."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg

from things_kit.brokers.postgres.errors import CLIENT, ERRORS, OPENING, READ_ONLY, code_of
from things_kit.brokers.postgres.options import Settings
from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ClosedError, ConfigError

OLDEST: Final = 13
"""Versions of PostgreSQL before have no snapshots as values."""

PATIENT: Final = 1.5
"""Who waits for longer than so many timeouts asks first whether a connection answers; a publish of a few bytes is not worth that."""


class Connections:
    """The pool of one driver. A connection that a call has left in an unknown state is closed, not handed on."""

    def __init__(self, settings: Settings) -> None:
        self.pooled = False
        """Whether a pooler such as PgBouncer stands before the server."""
        self._settings = settings
        self._idle: list[Any] = []
        self._busy: set[Any] = set()
        self._places = asyncio.Semaphore(settings.options.pool)
        self._open = False

    @property
    def unprepared(self) -> bool:
        """Whether statements have no names, and so need a transaction to be told and run on one server."""
        chosen = self._settings.options.prepared
        return chosen == "false" or (chosen == "auto" and self.pooled)

    @property
    def spare(self) -> bool:
        """Whether whoever holds a connection may wait for another one: there is one that nobody waits for."""
        return not self._places.locked()

    async def connect(self) -> Any:
        """A new connection, the caller's own. Raises ConnectionLost, or ConfigError for a wrong login or database."""
        display = self._settings.url.display
        size = 0 if self.unprepared else 100
        with OPENING.during(f"connecting to {display}"):
            return await asyncpg.connect(**self._settings.connection(), statement_cache_size=size)

    async def open(self) -> None:
        """Connect, and find out whom we speak to."""
        connection = await self.connect()
        try:
            async with asyncio.timeout(self._settings.options.timeout):
                with ERRORS.during("asking the server who it is"):
                    async with connection.transaction():
                        row = await connection.fetchrow(
                            "SELECT pg_backend_pid(), current_setting('server_version_num')::int / 10000, "
                            "current_setting('transaction_read_only') = 'on'"
                        )
        except BaseException:
            connection.terminate()
            raise
        pid, version, read_only = row
        self.pooled = pid != connection.get_server_pid()
        if self.unprepared or version < OLDEST or read_only:
            connection.terminate()  # made before this was known
        else:
            self._idle.append(connection)
        if version < OLDEST:
            raise ConfigError(
                f"{self._settings.url.display} is PostgreSQL {version}; {OLDEST} or newer is needed"
            )
        if read_only:
            raise ConnectionLost(
                f"{self._settings.url.display} is read-only, as a replica is; name the primary, or all hosts"
            )
        self._open = True

    async def close(self) -> None:
        """Close all, without waiting for a server that does not answer."""
        self._open = False
        idle, self._idle = self._idle, []
        for connection in self._busy:
            connection.terminate()
        for connection in idle:
            with contextlib.suppress(Exception):
                await connection.close(timeout=1)

    @contextlib.asynccontextmanager
    async def use(self, doing: str, within: float | None = None) -> AsyncIterator[Any]:
        """A connection, for `within` seconds at most; in a transaction where statements have no names."""
        seconds = self._settings.options.timeout if within is None else within
        async with self._places:
            connection = await self._take(proven=seconds > PATIENT * self._settings.options.timeout)
            limit = asyncio.timeout(seconds)
            healthy = False
            self._busy.add(connection)
            try:
                with ERRORS.during(doing):
                    async with limit, contextlib.AsyncExitStack() as stack:
                        if self.unprepared:
                            await stack.enter_async_context(connection.transaction())
                        yield connection
                healthy = True
            except Exception as error:
                cause = error.__cause__ or error
                healthy = isinstance(cause, asyncpg.PostgresError) and code_of(cause) != READ_ONLY
                if limit.expired():
                    self._drop_idle()  # they may be as silent as this one
                    raise ConnectionLost(f"{doing}: no answer within {seconds:g} s") from cause
                raise
            finally:
                self._busy.discard(connection)
                if healthy and self._open and not connection.is_closed():
                    self._idle.append(connection)
                else:
                    connection.terminate()

    async def _take(self, *, proven: bool) -> Any:
        """An idle connection, or a new one. `proven`: one that answers; who has patience would wait for a silent one, too."""
        if not self._open:
            raise ClosedError("the PostgreSQL broker is not open")
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed() and (not proven or await self._answers(connection)):
                return connection
        return await self.connect()

    async def _answers(self, connection: Any) -> bool:
        answers = False
        self._busy.add(connection)
        try:
            async with asyncio.timeout(self._settings.options.timeout):
                await connection.execute("SELECT 1")
            answers = True
        except TimeoutError:
            self._drop_idle()
        except (*CLIENT, OSError):
            pass  # it has ended, or is in the middle of something
        finally:
            self._busy.discard(connection)
            if not answers:
                connection.terminate()
        return answers

    def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.terminate()

    async def rows(
        self, doing: str, statement: str, *arguments: Any, within: float | None = None
    ) -> list[Any]:
        """The rows of one statement, which is a transaction of its own."""
        async with self.use(doing, within) as connection:
            found: list[Any] = await connection.fetch(statement, *arguments)
            return found

    async def row(self, doing: str, statement: str, *arguments: Any) -> Any:
        """The one row of a statement."""
        return (await self.rows(doing, statement, *arguments))[0]
