"""Receiving over one link: what arrives is read at once, and handed out in batches."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Final

from azure.servicebus.aio import ServiceBusReceiver

from things_kit.brokers.servicebus.admin import Admin
from things_kit.brokers.servicebus.errors import CLIENT, translated
from things_kit.brokers.servicebus.links import LOOK, Links, close_link
from things_kit.brokers.servicebus.messages import is_for, unpack
from things_kit.brokers.servicebus.names import entity_of, subscription_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.publisher import Publisher
from things_kit.brokers.servicebus.settlement import Settlement, Taken, complete, let_go
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.messaging.errors import ThingsKitError

CREDIT: Final = 250
"""Messages that a link asks for at a time."""

LINGER: Final = 0.003
"""Seconds in which nothing more may arrive before what has arrived is handed out: few at a time cost as much as many."""

GRACE: Final = 2.0
"""Seconds for which closing waits for what is being settled."""

ANSWER: Final = 0.3
"""Seconds within which the service says that there is no such subscription."""

WAIT: Final = 60.0
"""Seconds that one call to the client waits."""


class LinkReceiver:
    """A subscription, or a queue, over one link.

    A task of its own reads what arrives. It asks the client for one message at a time, from what the link has in store:
    asked for more, the client would wait for 0.2 seconds whether there are more, and lose them if it is cancelled
    meanwhile. It stops reading only where the link has no credit left, as what arrives unread stays locked.
    """

    def __init__(
        self, settings: Settings, links: Links, admin: Admin, publisher: Publisher, subscription: Subscription
    ) -> None:
        self._links = links
        self._admin = admin
        self._subscription = subscription
        self._settlement = Settlement(settings, publisher, subscription)
        self._entity = entity_of(subscription.topic)
        self._group = subscription_of(subscription.group)
        self._credit = max(1, min(CREDIT, subscription.max_in_flight))
        self._buffer: deque[Taken] = deque()
        self._held: set[Taken] = set()
        self._arrived = asyncio.Event()
        self._emptied = asyncio.Event()
        self._trouble: Exception | None = None
        self._settling: asyncio.Task[None] | None = None
        self._link: ServiceBusReceiver | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the link. Raises ConnectionLost, ConfigError."""
        self._link = await self._links.receiver(self._entity, self._group, self._credit)
        self._reading = asyncio.create_task(self._read(self._link), name="things_kit servicebus reader")
        if not self._subscription.create:
            # A link to what does not exist opens, and is closed by the service right after that
            await asyncio.wait({self._reading}, timeout=ANSWER)
            if self._trouble is not None:
                await self.close()
                raise self._trouble

    async def _read(self, link: ServiceBusReceiver) -> None:
        try:
            while True:
                for _ in range(self._credit):
                    await self._read_one(link)
                while self._buffer:
                    self._emptied.clear()
                    await self._emptied.wait()
        except CLIENT as error:
            trouble = translated(error, f"receiving from {self._subscription.topic!r}")
            trouble.__cause__ = error
            self._trouble = trouble
            self._arrived.set()

    async def _read_one(self, link: ServiceBusReceiver) -> None:
        received = None
        while received is None:
            received = next(iter(await link.receive_messages(1, max_wait_time=WAIT)), None)
        taken = Taken(received, unpack(self._subscription.topic, received), link)
        if is_for(received, self._group):
            self._buffer.append(taken)
            self._arrived.set()
        else:
            await self._settlement.all([taken], complete)

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """What has arrived, after at most `wait` seconds."""
        if not self._buffer:
            await self._wait(max(wait, LOOK))
        number = 0
        while number < len(self._buffer) < limit:
            number = len(self._buffer)
            await asyncio.sleep(LINGER)
        if not self._buffer and self._trouble is not None:
            raise self._trouble
        taken = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
        if not self._buffer:
            self._emptied.set()
        self._held.update(taken)
        return [Delivery(each.message, each) for each in taken]

    async def _wait(self, seconds: float) -> None:
        if self._trouble is None:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._arrived.wait()

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Complete, give back or copy; once begun it goes on, also if nobody waits for it any more."""
        self._settling = asyncio.create_task(
            self._settle(acknowledged, released), name="things_kit servicebus settling"
        )
        await asyncio.shield(self._settling)

    async def _settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        await self._settlement.settle(acknowledged, released)
        self._held.difference_update([delivery.token for delivery in acknowledged])
        self._held.difference_update([release.delivery.token for release in released])

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Lock for longer what is held, and what is still here."""
        held = [delivery.token for delivery in deliveries]
        for lost in await self._settlement.extend([*held, *self._buffer]):
            with contextlib.suppress(ValueError):
                self._buffer.remove(lost)

    async def close(self) -> None:
        """Give back what was not settled, close the link, and remove an ephemeral group."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._settling is not None:
            await asyncio.wait({self._settling}, timeout=GRACE)
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)
        for taken in sorted([*self._held, *self._buffer], key=_number):
            await let_go(taken)
        self._buffer.clear()
        self._held.clear()
        if self._link is not None:
            await close_link(self._link)
        if self._subscription.ephemeral:
            with contextlib.suppress(ConnectionLost, ThingsKitError):
                await self._admin.remove_group(self._subscription.topic, self._subscription.group)


def _number(taken: Taken) -> int:
    return taken.received.sequence_number or 0
