"""How a receiver that asks waits for what may come."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from things_kit.engine.driver import Delivery, Subscription


class Waiting:
    """Looks whenever it is woken, until something is there or the time is over."""

    def __init__(self, subscription: Subscription) -> None:
        self._inbox = subscription.inbox
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look again."""
        self._woken.set()

    async def bring(self, look: Callable[[], Sequence[Delivery]], wait: float) -> None:
        """Put what `look` finds into the inbox; what it raises is raised here."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while not (taken := look()) and loop.time() < deadline:
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._woken.wait()
        self._inbox.put(taken)
