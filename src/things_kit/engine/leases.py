"""Keeps leases alive while messages are held."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from things_kit.engine.driver import Delivery


class Leased(Protocol):
    """What extends leases: a receiver."""

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """See `Receiver.extend`."""


async def keep_leases(
    receiver: Leased, held: Callable[[], Collection[Delivery]], lease: float | None
) -> None:
    """Extend the leases of all that is held, three times a lease, until cancelled. Returns at once without a lease.

    Raises:
        ConnectionLost: The broker has forgotten the receiver, or is away.
    """
    while lease is not None:
        await asyncio.sleep(lease / 3)
        deliveries = list(held())
        if deliveries:
            await receiver.extend(deliveries)
