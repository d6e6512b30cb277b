"""Receiving as a member of a group."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from things_kit.brokers.postgres.watch import Member
from things_kit.brokers.postgres.wire import Page, unpack
from things_kit.engine.driver import Delivery, Inbox, Release

if TYPE_CHECKING:
    from things_kit.brokers.postgres.driver import PostgresDriver

LONGEST_DELAY: Final = 1e10

FAREWELL: Final = 2.0
"""Seconds that leaving may take; the lease does the rest."""


def ranges(offsets: Iterable[int]) -> tuple[list[int], list[int]]:
    """The first and the last of each row of offsets that follow one another."""
    firsts: list[int] = []
    lasts: list[int] = []
    for offset in sorted(offsets):
        if lasts and offset == lasts[-1] + 1:
            lasts[-1] = offset
        else:
            firsts.append(offset)
            lasts.append(offset)
    return firsts, lasts


class PostgresReceiver:
    """One member of a group. A delivery's token is its offset."""

    def __init__(self, home: "PostgresDriver", member: Member, inbox: Inbox) -> None:
        self._home = home
        self._member = member
        self._inbox = inbox
        self._taking: asyncio.Task[int] | None = None
        self._promising = True
        self._quiet = False

    async def fetch(self, limit: int, wait: float) -> None:
        """Up to `limit` messages, as soon as there is one; or what a call that was cancelled asked for."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + wait
        while True:
            if self._taking is not None or self._promising or wait <= 0:
                taken = await self._take(limit, look=wait <= 0)
                self._promising = taken >= limit
                if taken or wait <= 0:
                    return
            left = ends - loop.time()
            if self._quiet or left <= 0 or not await self._home.watch.wait(self._member, left):
                return
            self._promising = True

    async def _take(self, limit: int, *, look: bool) -> int:
        """In a task of its own: what the server has handed out reaches the inbox though the call is cancelled."""
        if self._taking is None:
            self._taking = asyncio.create_task(self._hand_out(limit, look=look))
        await asyncio.wait({self._taking})
        task, self._taking = self._taking, None
        return task.result()

    async def _hand_out(self, limit: int, *, look: bool) -> int:
        member, home = self._member, self._home
        subscription = member.subscription
        if look:
            await home.ask_all("looking for messages", "look($1, $2)", [member.group], [member.id])
        pages = await home.ask_all(
            f"receiving from {subscription.topic!r}",
            "hand_out($1, $2, $3, $4, $5, $6)",
            member.group, member.id, limit, subscription.ordering, home.options.lease, member.held > 0,
        )  # fmt: skip
        deliveries = [delivery for page in pages for delivery in unpack(subscription.topic, Page(*page))]
        if not deliveries:
            return 0
        member.held += len(deliveries)
        self._inbox.put(deliveries)  # what it refuses goes back when this closes
        return len(deliveries)

    async def quiesce(self) -> None:
        """End a call that was cancelled; what it has taken is in the inbox."""
        self._quiet = True
        if self._taking is not None:
            await self._take(0, look=False)

    async def overdue(self) -> int | None:
        """What nobody has, and is due, in lanes that nobody has."""
        member = self._member
        row = await self._home.ask(
            "asking what waits", "waiting($1, $2, $3)", member.group, member.id, member.subscription.ordering
        )
        return None if row[0] is None else int(row[0])

    async def mark(self, delivery: Delivery, suspect: int) -> None:
        """Note it beside the loan."""
        await self._home.ask(
            "marking a suspect", "mark($1, $2, $3)", self._member.id, delivery.token, suspect
        )

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Settle in one transaction, for good when this returns."""
        member = self._member
        row = await self._home.ask(
            f"settling messages of {member.subscription.topic!r}",
            "settle($1, $2, $3, $4, $5, $6, $7, $8)",
            member.group,
            member.id,
            *ranges(delivery.token for delivery in acknowledged),
            [given.delivery.token for given in released],
            [min(max(given.delay, 0.0), LONGEST_DELAY) for given in released],
            [given.attempt for given in released],
            [given.aside for given in released],
        )
        member.held -= len(acknowledged) + len(released)
        if row[0]:
            self._home.say([member.subscription.topic])

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Renew the receiver's lease, and by it that of all it holds."""
        await self._home.renew(self._member)

    async def close(self) -> None:
        """Leave the group, after a call that is still under way: it would join again what had left."""
        member = self._member
        self._home.forget(member)
        if (taking := self._taking) is not None:
            await asyncio.wait({taking}, timeout=FAREWELL)
            taking.cancel()
            if taking.done() and not taking.cancelled():
                taking.exception()  # of no interest any more
        if member.subscription.ephemeral:
            await self._home.ask("leaving", "drop_group($1)", member.group, within=FAREWELL)
        else:
            row = await self._home.ask("leaving", "leave($1, $2)", member.id, member.group, within=FAREWELL)
            if row[0]:
                self._home.say([member.subscription.topic])
