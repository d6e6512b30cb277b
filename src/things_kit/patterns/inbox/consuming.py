"""What an inbox does around the handler of one consumer."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from things_kit.engine.clock import steady
from things_kit.engine.held import holding, refusal
from things_kit.engine.results import take_results
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError, PublishError
from things_kit.messaging.handler import Handle, HandleBatch
from things_kit.messaging.message import Message
from things_kit.messaging.outcomes import BatchError, Reject
from things_kit.patterns.inbox.marks import SWEPT, mark_of
from things_kit.patterns.inbox.transactions import Transaction

if TYPE_CHECKING:
    from things_kit.patterns.inbox.handling import Inbox

log = logging.getLogger("things_kit.inbox")

SWEEP_EVERY: Final = 60.0
"""Seconds between two looks for marks that have expired; at once where there were many."""

LOCKED: Final = 0.02
"""Seconds before a locked SQLite file is asked again: it waits by itself, as long as the engine's `timeout` says."""

LONG: Final = 0.2
"""Seconds with a SQLite file's write lock after which leases are renewed that nobody else could renew meanwhile."""


class Consuming:
    """The transactions of one consumer's group."""

    def __init__(self, inbox: "Inbox", group: str) -> None:
        self._inbox = inbox
        self._group = group
        self._sweep_at = 0.0
        name = inbox.engine.url.database if inbox.dialect == "sqlite" else None
        self._file = Path(name).resolve() if name else None

    async def look(self) -> None:
        """Look whether the table is there. Raises ConfigError."""
        from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - whoever has an engine has it

        async with self._inbox.turn:
            transaction = await self._inbox.begin()
            try:
                await transaction.execute(self._inbox.marks.look, {})
            except DBAPIError as error:
                raise ConfigError(
                    f"the inbox's table of marks cannot be read ({error.orig}): outbox.create(engine) makes it, or connecting "
                    "to the broker of that database"
                ) from error
            finally:
                await transaction.end(commit=False)

    def __call__(self, handle: Handle) -> Handle:
        """Handle what has no mark, in one transaction with its mark."""

        async def handled(message: Message) -> None:
            async with self._transaction() as transaction:
                if not await self._mark(transaction, message):
                    return
                async with self._session(transaction):
                    await handle(message)
                await self._publish(transaction)
            await self._tidy()

        return handled

    def handle_batch(self, handle: HandleBatch) -> HandleBatch:
        """Handle those of a list that have no mark, in one transaction with their marks."""

        async def handled(messages: list[Message]) -> None:
            failed: BatchError | None = None
            async with self._transaction() as transaction:
                if fresh := await self._mark_all(transaction, messages):
                    failed = await self._handle_batch(transaction, handle, messages, fresh)
            await self._tidy()
            if failed is not None:
                raise failed

        return handled

    async def _handle_batch(
        self, transaction: Transaction, handle: HandleBatch, messages: Sequence[Message], fresh: Sequence[int]
    ) -> BatchError | None:
        """Handle those; what failed alone loses its mark, and is named by its place in the whole list."""
        async with self._session(transaction):
            try:
                await handle([messages[index] for index in fresh])
            except BatchError as error:
                moved = error.moved(fresh)
                if moved is None:
                    raise
                failed = _named(moved.errors, messages)
            else:
                return None
        for index in failed.errors:
            await self._unmark(transaction, messages[index])
        return failed

    # --- the transaction

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Transaction]:
        """A transaction that commits; an exception undoes what was done inside."""
        commit = False
        async with self._inbox.turn:
            transaction = await self._inbox.begin()
            try:
                if self._file is None:
                    yield transaction
                else:
                    await self._when_free(transaction)
                    with holding(str(self._file)):
                        began = steady()
                        await transaction.execute("SAVEPOINT things_kit_inbox", {})
                        try:
                            yield transaction
                        except BaseException:
                            await transaction.execute("ROLLBACK TO things_kit_inbox", {})
                            commit = await self._prolonged(transaction, began)
                            raise
                        await self._prolonged(transaction, began)
                commit = True
            finally:
                await transaction.end(commit=commit)

    async def _prolonged(self, transaction: Transaction, began: float) -> bool:
        """Whether leases of the file were prolonged by the time for which we had its write lock.

        Nobody could renew one meanwhile, so all go on that had not run out: before the lock is free, after a failure too.
        """
        held = steady() - began
        if held > LONG:
            await transaction.execute(self._inbox.marks.prolong, {"held": held, "began": began})
        return held > LONG

    async def _when_free(self, transaction: Transaction) -> None:
        from sqlalchemy.exc import OperationalError  # noqa: PLC0415

        while True:
            try:
                await transaction.execute(self._inbox.marks.lock, {})
            except OperationalError as error:
                if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
            else:
                return
            await asyncio.sleep(LOCKED)

    @asynccontextmanager
    async def _session(self, transaction: Transaction) -> AsyncIterator[None]:
        """The handler's session, for as long as it runs."""
        await transaction.open_session()
        running = self._inbox.running.set(transaction)
        refusing = refusal.set(self._refuse if self._file is not None else refusal.get())
        done = False
        try:
            yield
            done = True
        finally:
            refusal.reset(refusing)
            self._inbox.running.reset(running)
            await transaction.close_session(keep=done)

    def _refuse(self, url: BrokerURL) -> str | None:
        """To wait for the confirmation of what is published to this very file would be to wait for the handler itself."""
        if url.scheme == "sqlite" and Path(url.path[1:]).resolve() == self._file:
            return (
                f"{url.display} is locked by the transaction of this handler, so that it could never confirm: publish with "
                "outbox.publish(inbox.session(), ...)"
            )
        return None

    # --- inside of it

    async def _mark(self, transaction: Transaction, message: Message) -> bool:
        """Mark it; tells whether it had no mark."""
        if message.id is None:
            return True
        now = steady()
        marked = await transaction.execute(
            self._inbox.marks.mark,
            {
                **mark_of(self._group, message.topic, message.id),
                "now": now,
                "expires": now + self._inbox.retain,
            },
        )
        return bool(marked)

    async def _mark_all(self, transaction: Transaction, messages: Sequence[Message]) -> list[int]:
        """Mark them, and tell by their indices which had no mark.

        In one fixed order: of two that have the same messages one then waits for the other, and not each for each.
        """
        order = sorted(
            range(len(messages)), key=lambda index: (messages[index].topic, messages[index].id or "", index)
        )
        return sorted([index for index in order if await self._mark(transaction, messages[index])])

    async def _unmark(self, transaction: Transaction, message: Message) -> None:
        if message.id is not None:
            mark = mark_of(self._group, message.topic, message.id)
            await transaction.execute(self._inbox.marks.forget, mark)

    async def _publish(self, transaction: Transaction) -> None:
        """Store what the handler has returned."""
        results = take_results()
        if not results or self._inbox.outbox is None:
            return
        try:
            await transaction.publish(self._inbox.outbox, results)
        except PublishError as error:
            raise Reject(f"its result was refused: {error}") from error

    async def _tidy(self) -> None:
        """From time to time, delete some marks that have expired; the handler's work is committed, whatever comes of it."""
        now = asyncio.get_running_loop().time()
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_EVERY
        try:
            async with self._transaction() as transaction:
                swept = await transaction.execute(self._inbox.marks.sweep, {"now": steady(), "most": SWEPT})
        except Exception as error:  # noqa: BLE001 - the message is handled, so it must not fail
            log.warning("marks that have expired were not deleted: %s", error)
        else:
            if swept == SWEPT:
                self._sweep_at = now


def _named(errors: dict[int, BaseException], messages: Sequence[Message]) -> BatchError:
    """These, and what was left out beside one that failed, as it has its id: it failed too."""
    failed = {
        (messages[index].topic, messages[index].id): each
        for index, each in errors.items()
        if messages[index].id is not None
    }
    for index, message in enumerate(messages):
        if index not in errors and (message.topic, message.id) in failed:
            errors[index] = failed[message.topic, message.id]
    return BatchError(errors)
