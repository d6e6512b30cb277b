"""Receiving as a member of a group: what is asked of the thread that has the file."""

import asyncio
from collections.abc import Sequence
from typing import Final

from things_kit.brokers.sqlite.admin import leave, renew
from things_kit.brokers.sqlite.lending import Page, waiting
from things_kit.brokers.sqlite.settling import Give, mark, settle
from things_kit.brokers.sqlite.store import Member
from things_kit.brokers.sqlite.wire import unpack
from things_kit.brokers.sqlite.worker import Request, Worker
from things_kit.engine.clock import steady
from things_kit.engine.driver import Delivery, Inbox, Release

LONGEST_DELAY: Final = 1e10


class SQLiteReceiver:
    """One member of a group. A delivery's token is its offset."""

    def __init__(self, worker: Worker, member: Member, inbox: Inbox) -> None:
        self._worker = worker
        self._inbox = inbox
        self._member = member
        self._request: Request | None = None

    async def fetch(self, limit: int, wait: float) -> None:
        """Up to `limit` messages, as soon as there is one; or what a call that was cancelled asked for."""
        request = self._request = self._request or self._worker.request(self._member, limit, wait)
        await asyncio.wait({request.future})
        self._request = None
        page: Page | None = request.future.result()
        if page is not None:
            deliveries = unpack(self._member.subscription.topic, page)
            self._member.held += len(deliveries)
            self._inbox.put(deliveries)  # what it refuses goes back when this closes

    async def quiesce(self) -> None:
        """End a call that was cancelled; what it has taken is in the inbox."""
        if self._request is not None:
            self._request.abandoned = True
            self._worker.nudge()
            await self.fetch(0, 0.0)

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
        await self._worker.write(lambda store: leave(store, member), insists=True)
