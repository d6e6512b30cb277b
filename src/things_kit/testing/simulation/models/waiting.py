"""How a receiver that asks waits for what may come."""

import asyncio
from collections.abc import Callable, Sequence

from things_kit.engine.driver import Delivery, Subscription


class Waiting:
    """Looks whenever it is woken, until something is there or the time is over."""

    def __init__(self, subscription: Subscription) -> None:
        self._inbox = subscription.inbox
        self._woken: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Look again."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def bring(self, look: Callable[[], Sequence[Delivery]], wait: float) -> None:
        """Put what `look` finds into the inbox; what it raises is raised here."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        timer = loop.call_at(deadline, self.wake)
        try:
            while not (taken := look()) and loop.time() < deadline:
                self._woken = loop.create_future()
                await self._woken
        finally:
            timer.cancel()
        self._inbox.put(taken)
