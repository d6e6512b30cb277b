"""Keeps leases alive while messages are held."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

from things_kit.engine.driver import Delivery


async def keep_leases(
    extend: Callable[[Sequence[Delivery]], Awaitable[None]],
    held: Callable[[], Collection[Delivery]],
    lease: float | None,
) -> None:
    """Extend the leases of all that is held, three times a lease, until cancelled. Returns at once without a lease.

    Raises:
        ConnectionLost: The broker has forgotten the receiver, or is away.
    """
    while lease is not None:
        await asyncio.sleep(lease / 3)
        deliveries = list(held())
        if deliveries:
            await extend(deliveries)
