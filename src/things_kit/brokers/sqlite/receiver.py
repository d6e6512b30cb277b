"""Receiving as a member of a group: what is asked of the thread that has the file."""

import asyncio
from collections.abc import Sequence
from typing import Final

from things_kit.brokers.sqlite.admin import leave, renew
from things_kit.brokers.sqlite.lending import Page, waiting
from things_kit.brokers.sqlite.settling import Give, mark, settle
from things_kit.brokers.sqlite.store import Member
from things_kit.brokers.sqlite.wire import attempts_of, offsets_of, unpack
from things_kit.brokers.sqlite.worker import Worker, ignore_failure
from things_kit.engine.clock import steady
from things_kit.engine.driver import Delivery, Inbox, Release

LONGEST_DELAY: Final = 1e10


class SQLiteReceiver:
    """One member of a group. A delivery's token is its offset."""

    def __init__(self, worker: Worker, member: Member, inbox: Inbox) -> None:
        self._worker = worker
        self._inbox = inbox
        self._member = member
        self._abandoned: asyncio.Future[Page | None] | None = None

    async def fetch(self, limit: int, wait: float) -> None:
        """Up to `limit` messages, as soon as there is one."""
        await self.quiesce()
        request = self._worker.request(self._member, limit, wait)
        try:
            page = await asyncio.shield(request.future)
        except asyncio.CancelledError:
            self._abandoned = request.future
            request.abandoned = True
            request.future.add_done_callback(self._give_back)
            self._worker.nudge()
            raise
        if page is not None:
            deliveries = unpack(self._member.subscription.topic, page)
            self._member.held += len(deliveries)
            self._inbox.put(deliveries)

    async def quiesce(self) -> None:
        """Wait until what a cancelled call took is on its way back, or a lane would be out of order."""
        if self._abandoned is not None:
            await asyncio.wait([self._abandoned])
            self._abandoned = None

    async def overdue(self) -> int | None:
        """What nobody has, and is due, in lanes that nobody has."""
        member = self._member
        return await self._worker.read(lambda store: waiting(store, member, steady()))

    async def mark(self, delivery: Delivery, suspect: int) -> None:
        """Note it beside the loan."""
        member, offset = self._member, delivery.token
        await self._worker.write(lambda store: mark(store, member, offset, suspect))

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Settle in one transaction, on disk when this returns."""
        now, member = steady(), self._member
        done: list[int] = [delivery.token for delivery in acknowledged]
        back: list[Give] = [
            (
                given.delivery.token,
                now + min(max(given.delay, 0.0), LONGEST_DELAY),
                given.attempt,
                given.aside,
            )
            for given in released
        ]
        if done or back:
            await self._worker.write(lambda store: settle(store, member, done, back))
            member.held -= len(done) + len(back)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Renew the receiver's lease, and by it that of all it holds."""
        member = self._member
        await self._worker.write(lambda store: renew(store, member, steady()), durable=False)

    async def close(self) -> None:
        """Leave the group."""
        member = self._member
        if member.closed or self._worker.stopping:
            return
        member.closed = True
        self._worker.forget(member)
        await self._worker.write(lambda store: leave(store, member))

    def _give_back(self, future: asyncio.Future[Page | None]) -> None:
        """A cancelled call's messages return to the group, as if it had not taken them."""
        page = None if future.cancelled() or future.exception() else future.result()
        if page is None or self._member.closed or self._worker.stopping:
            return
        now, member = steady(), self._member
        offsets = offsets_of(page)
        attempts = attempts_of(page, len(offsets))
        back = [(offset, now, attempt, False) for offset, attempt in zip(offsets, attempts, strict=True)]
        ignore_failure(self._worker.write(lambda store: settle(store, member, [], back), durable=False))
