"""Copies that came before they are due: a wait is made of several, and the last part of it is waited out here."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from things_kit.engine.clock import steady
from things_kit.engine.driver import ConnectionLost, Delivery, Later
from things_kit.messaging.errors import ThingsKitError

SHORT: Final = 1.0
"""Seconds that are waited out here."""

SendLater: TypeAlias = Callable[[Sequence[Later]], Awaitable[Sequence[Exception | None]]]
"""As `SendsLater.send_later`."""


class Early:
    """What a receiver got too early: it is sent on, or handed over when it is due.

    Args:
        send_later: Sends copies on; None where the queue dies with its receiver.
        due: Takes what is due now.
        sent_on: Takes what is not needed any more, as a copy of it is confirmed.
    """

    def __init__(
        self,
        send_later: SendLater | None,
        due: Callable[[Delivery], None],
        sent_on: Callable[[Delivery], None],
    ) -> None:
        self._send_later = send_later
        self._due = due
        self._sent_on = sent_on
        self._timers: dict[Delivery, asyncio.TimerHandle] = {}
        self._sending: dict[asyncio.Task[None], Delivery] = {}

    def keep(self, delivery: Delivery, copy: Later) -> None:
        """This came; the copy is what is to be sent instead, if that has a long time."""
        wait = copy.due.timestamp() - steady()
        if wait <= SHORT or self._send_later is None:
            self._hold(delivery, wait)
            return
        task = asyncio.create_task(self._send_on(delivery, copy), name=f"{copy.group} sending on")
        self._sending[task] = delivery
        task.add_done_callback(lambda task: self._sending.pop(task, None))

    async def _send_on(self, delivery: Delivery, copy: Later) -> None:
        assert self._send_later is not None  # noqa: S101 - `keep` has looked
        try:
            [refused] = await self._send_later([copy])
        except (ConnectionLost, ThingsKitError) as error:
            refused = error
        if refused is None:
            self._sent_on(delivery)
        else:
            self._hold(delivery, copy.due.timestamp() - steady())

    def _hold(self, delivery: Delivery, wait: float) -> None:
        loop = asyncio.get_running_loop()
        self._timers[delivery] = loop.call_later(max(0.0, wait), self._is_due, delivery)

    def _is_due(self, delivery: Delivery) -> None:
        del self._timers[delivery]
        self._due(delivery)

    async def end(self) -> Sequence[Delivery]:
        """Wait for nothing any more: returns what has still to wait."""
        sending = dict(self._sending)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        held, self._timers = self._timers, {}
        for timer in held.values():
            timer.cancel()
        return [*held, *(delivery for task, delivery in sending.items() if task.cancelled())]
