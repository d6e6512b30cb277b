"""The inbox: a message's mark, what its handler does and what it publishes are there together, or not at all."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from things_kit.engine.clock import steady
from things_kit.messaging.consumer import Bound
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.handler import Handle, HandleBatch, WrapsHandling
from things_kit.messaging.policy import Seconds, seconds
from things_kit.patterns.inbox.consuming import Consuming
from things_kit.patterns.inbox.marks import SWEPT, Marks, mark_of
from things_kit.patterns.inbox.transactions import AsyncTransaction, SyncTransaction, Transaction
from things_kit.patterns.outbox import Outbox
from things_kit.patterns.outbox.writing import dialect_of

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

UNBOUND: Final = "an inbox belongs to a consumer: broker.consumer(..., middleware=[inbox])"


class Inbox(WrapsHandling):
    """Middleware that has each message handled once, as far as its effects are in one database.

    The mark (group, topic, id) is written in one transaction with what the handler does; a message that is marked is
    acknowledged without a call. What failed has no mark, so that retries and replays are handled. Effects elsewhere happen
    at least once. A message without an id, from a foreign publisher, is handled in a transaction, but cannot be marked.

    `inbox.session()`, or a handler's parameter annotated `AsyncSession` (with an `AsyncEngine`, for async handlers) or
    `Session` (with an `Engine`, for plain ones), is that transaction's: its `commit()` is a savepoint's, its `rollback()`
    undoes what came after the last one. With `batch=` a list is one transaction: `BatchError` commits and marks all but those
    it names. With `publish=` results are published by the outbox, in the same transaction.

    Args:
        engine: SQLAlchemy's, of PostgreSQL or SQLite.
        outbox: Whose schema it uses, and what publishes results.
        schema: The schema of the table of marks, without an outbox.
        retain: How long a mark is kept: longer than any repeat of its message may take to come.
    """

    def __init__(
        self,
        engine: "AsyncEngine | Engine",
        *,
        outbox: Outbox | None = None,
        schema: str | None = None,
        retain: Seconds = timedelta(days=30),
    ) -> None:
        if outbox is not None and schema is not None:
            raise ConfigError("an inbox with an outbox uses its schema: say outbox= or schema=")
        self.engine = engine
        self.outbox = outbox
        self.retain = seconds(retain, "retain")
        self.dialect = dialect_of(engine)
        self.marks = Marks(self.dialect, outbox.schema if outbox else schema or "things_kit")
        self.is_async = hasattr(engine, "sync_engine")
        self.turn = _turn_of(engine)
        self.running: ContextVar[Transaction | None] = ContextVar("things_kit.inbox", default=None)

    def session(self) -> Any:
        """The session of the handler that runs: an `AsyncSession`, or a `Session` where the engine is an `Engine`.

        Raises ConfigError outside of a handler.
        """
        transaction = self.running.get()
        if transaction is None:
            raise ConfigError(
                "inbox.session() is the transaction of a handler; none runs here with this inbox"
            )
        return transaction.session

    async def begin(self) -> Transaction:
        """A transaction of the engine."""
        engine: Any = self.engine
        if self.is_async:
            return await AsyncTransaction.begin(engine)
        return await SyncTransaction.begin(engine)

    # --- as middleware

    async def bind(self, consumer: Bound) -> Consuming:
        """What is around the handler of one consumer.

        Raises ConfigError for a handler that could not use the session, for results that nothing would publish, and where the
        table of marks is missing.
        """
        _check_kind(consumer, is_async=self.is_async)
        if consumer.publishes and self.outbox is None:
            raise ConfigError(
                "with an inbox, publish= needs an outbox, so that results are in the same transaction: say Inbox(outbox=...)"
            )
        consuming = Consuming(self, consumer.group)
        await consuming.look()
        return consuming

    def provides(self) -> Mapping[type, Callable[[], Any]]:
        """The session, for a parameter of its type."""
        from sqlalchemy.ext.asyncio import AsyncSession  # noqa: PLC0415 - whoever has an engine has it
        from sqlalchemy.orm import Session  # noqa: PLC0415

        return {AsyncSession if self.is_async else Session: self.session}

    def __call__(self, handle: Handle, /) -> Handle:
        """Refuse to be around what has no group: a mark is a group's. Raises ConfigError."""
        raise ConfigError(UNBOUND)

    def handle_batch(self, handle: HandleBatch, /) -> HandleBatch:
        """The same for lists."""
        raise ConfigError(UNBOUND)

    # --- the marks

    def forget(self, group: str, topic: str, id: str) -> Any:  # noqa: A002 - a message's
        """Take a mark away: the message is handled when it comes again. Awaited with an `AsyncEngine`."""
        parameters = mark_of(group, topic, id)
        return self._at_once(self.marks.forget, lambda: parameters, once=True)

    def sweep(self) -> Any:
        """Delete the marks that have expired, in small batches; returns how many. Awaited with an `AsyncEngine`."""
        return self._at_once(self.marks.sweep, lambda: {"now": steady(), "most": SWEPT}, once=False)

    def _at_once(self, statement: str, parameters: Callable[[], dict[str, Any]], *, once: bool) -> Any:
        """Run a statement in transactions of its own, until it changes few rows; between them handlers have their turn."""
        from sqlalchemy import text  # noqa: PLC0415

        engine: Any = self.engine
        if self.is_async:
            return self._at_once_async(statement, parameters, once=once)
        total = 0
        while True:
            began = time.monotonic()
            with engine.begin() as connection:
                count = int(connection.execute(text(statement), parameters()).rowcount)
            total += count
            if once or count < SWEPT:
                return total
            time.sleep(time.monotonic() - began)

    async def _at_once_async(
        self, statement: str, parameters: Callable[[], dict[str, Any]], *, once: bool
    ) -> int:
        from sqlalchemy import text  # noqa: PLC0415

        engine: Any = self.engine
        turn = self.turn if self.running.get() is None else nullcontext()
        total = 0
        while True:
            began = time.monotonic()
            async with turn, engine.begin() as connection:
                count = int((await connection.execute(text(statement), parameters())).rowcount)
            total += count
            if once or count < SWEPT:
                return total
            await asyncio.sleep(time.monotonic() - began)


def _check_kind(consumer: Bound, *, is_async: bool) -> None:
    """Raise ConfigError for a handler that could not use the session: in a thread it can await none, and outside it may not block."""
    if consumer.in_threads is not is_async:
        return
    engine, right, handler, other = (
        ("AsyncEngine", "async", "plain", "Engine")
        if is_async
        else ("Engine", "plain", "async", "AsyncEngine")
    )
    raise ConfigError(
        f"the inbox of {consumer.group!r} has an {engine}, whose session is for {right} handlers, and its handler is {handler}: "
        f"make it {right}, or give the inbox an {other}"
    )


def _turn_of(engine: Any) -> AbstractAsyncContextManager[object]:
    """What to enter for a transaction: of an engine with one connection for all, as in memory, one at a time."""
    from sqlalchemy.pool import StaticPool  # noqa: PLC0415 - whoever has an engine has it

    if not isinstance(engine.pool, StaticPool):
        return nullcontext()
    return _turns.setdefault(engine.pool, asyncio.Lock())


_turns: Final[WeakKeyDictionary[Any, asyncio.Lock]] = WeakKeyDictionary()
