"""One at a time in the whole group, at a broker that keeps no order across processes, but names what it keeps until later.

Whoever wants its turn schedules a claim, a message that is due when its lease ends, and then looks for claims of others. It has its
turn if there are none. Of two that see each other the later one withdraws: this is the one-bit algorithm of Burns and Lamport.
While it lasts the claim is put off; that of a killed process comes due, and so is gone. Nothing needs to be put right.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Final
from uuid import uuid4

from things_kit.engine.broker import Broker
from things_kit.engine.producer import BrokerProducer
from things_kit.messaging.errors import ThingsKitError
from things_kit.messaging.message import Message
from things_kit.messaging.outcomes import Later

log = logging.getLogger("things_kit.every")

CLAIM: Final = "turn-"
"""How the `schedule_id` of a claim begins, and what its header `kind` is, without the dash."""

LEASE: Final = 30.0
"""Seconds for which a turn is claimed where the broker has no lease of its own."""

SHORTEST: Final = 1.0
"""Seconds for which it is claimed at the least: a shorter lease could end between two renewals on a busy machine."""

AGAIN: Final = (0.05, 1.0)
"""Seconds until whoever has to wait looks again: half of the time for which it waits, but no less and no more."""

WITHDRAWN: Final = 1.0
"""Seconds in which one that saw an earlier claim has withdrawn; longer than that is a run's."""


class Turns:
    """Gives out turns among all processes that claim them in one topic."""

    def __init__(self, broker: Broker, producer: BrokerProducer, topic: str) -> None:
        """Make it.

        Args:
            broker: It has `schedule_ids` and `schedules`.
            producer: Publishes the claims.
            topic: Where they are; whoever consumes it passes over those that have come.
        """
        self._broker = broker
        self._producer = producer
        self._topic = topic
        self._waits_since: float | None = None
        self._lease = max(SHORTEST, broker.capabilities.lease or LEASE)

    @asynccontextmanager
    async def turn(self, planned: datetime) -> AsyncIterator[None]:
        """Have the only turn; of several who begin at once, whose time was planned first. Raises Later where it is another's."""
        if await self._claims():
            raise self._later()
        claim = f"{CLAIM}{planned.isoformat()}-{uuid4().hex}"
        try:
            await self._put_off(claim)
            if not await self._is_alone(claim):
                raise self._later()
            self._waits_since = None
            async with self._kept(claim):
                yield
        finally:
            await self._withdraw(claim)

    async def _claims(self) -> list[str]:
        """The names of all claims."""
        found = await self._broker.schedules(self._topic, limit=1000)
        return [each.schedule_id for each in found if each.schedule_id and each.schedule_id.startswith(CLAIM)]

    def _later(self) -> Later:
        now, (shortest, longest) = asyncio.get_running_loop().time(), AGAIN
        if self._waits_since is None:
            self._waits_since = now
        return Later(min(longest, max(shortest, (now - self._waits_since) / 2)))

    async def _is_alone(self, claim: str) -> bool:
        """Whether there is no other claim, once those have withdrawn that are to."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + WITHDRAWN
        while (claims := await self._claims()) != [claim]:
            if claim not in claims:
                log.warning(
                    "%s: a claim for %g s had ended before it was seen: the broker was slow, or this clock is behind",
                    self._topic,
                    self._lease,
                )
                return False
            if min(claims) != claim or loop.time() >= ends:
                return False
            await asyncio.sleep(AGAIN[0])
        return True

    @asynccontextmanager
    async def _kept(self, claim: str) -> AsyncIterator[None]:
        """Put the claim off three times a lease."""
        over = asyncio.Event()
        keeping = asyncio.create_task(self._keep(claim, over), name=f"{self._topic} turn")
        try:
            yield
        finally:
            over.set()  # not cancelled: what is on its way would bring back a claim that is withdrawn
            await keeping

    async def _keep(self, claim: str, over: asyncio.Event) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease / 3):
                    await over.wait()
            if over.is_set():
                return
            try:
                await self._put_off(claim)
            except ThingsKitError as error:
                log.warning("%s: a run goes on, but its claim could not be renewed: %s", self._topic, error)

    async def _put_off(self, claim: str) -> None:
        message = Message(self._topic, b"", headers={"kind": CLAIM.removesuffix("-")})
        await self._producer.publish(message, after=self._lease, schedule_id=claim)

    async def _withdraw(self, claim: str) -> None:
        try:
            await self._broker.cancel(self._topic, claim)
        except ThingsKitError as error:
            log.warning(
                "%s: the next run waits until a claim has ended, up to %g s: %s",
                self._topic,
                self._lease,
                error,
            )
