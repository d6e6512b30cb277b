"""Delayed copies: what a broker without delays can keep until it is due, and what an acknowledgement waits for."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

from things_kit.engine.clock import steady
from things_kit.engine.driver import ConnectionLost, Delivery, Later
from things_kit.engine.state import State
from things_kit.messaging.errors import ThingsKitError

log = logging.getLogger("things_kit.consumer")

Send: TypeAlias = Callable[[Sequence[Later]], Awaitable[Sequence[Exception | None]]]
"""Publishes copies; one result each, None where it is confirmed. Raises ConnectionLost."""

Failed: TypeAlias = Callable[[Delivery, float, Exception], None]
"""There is no copy: the delivery, the seconds that it has still to wait, and why."""


class Copies:
    """Confirms the copy, then acknowledges the original; what is added meanwhile goes with the next send.

    Below `shortest` seconds a copy is not worth it.
    """

    def __init__(self, send: Send, group: str, shortest: float) -> None:
        self._send = send
        self._group = group
        self._shortest = shortest
        self._waiting: list[tuple[Delivery, Later, Failed]] = []
        self._sending: asyncio.Task[None] | None = None

    def wanted(self, wait: float) -> bool:
        """Whether a wait of so many seconds is worth a copy."""
        return wait > self._shortest

    def add(self, delivery: Delivery, wait: float, failed: Failed, suspect: int = 0) -> None:
        """Have a copy of this message come in so many seconds, with its attempt, and acknowledge it then."""
        due = datetime.fromtimestamp(steady() + wait, UTC)
        message = delivery.message
        self._waiting.append((delivery, Later(message, self._group, due, message.attempt, suspect), failed))
        if self._sending is None:
            self._sending = asyncio.create_task(
                self._send_all(), name=f"{self._group} putting messages aside"
            )

    @property
    def tasks(self) -> Sequence[asyncio.Task[None]]:
        """What is on its way."""
        return () if self._sending is None else (self._sending,)

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                going, self._waiting = self._waiting, []
                copies = [copy for _, copy, _ in going]
                try:
                    results = await self._send(copies)
                except (ConnectionLost, ThingsKitError) as error:
                    results = [error] * len(going)
                except Exception as error:
                    log.exception("%s: messages were not put aside", self._group)
                    results = [error] * len(going)
                for (delivery, copy, failed), refusal in zip(going, results, strict=True):
                    if refusal is None:
                        delivery.inbox.left(delivery)
                    elif delivery.state is not State.DONE:
                        failed(delivery, max(0.0, copy.due.timestamp() - steady()), refusal)
        finally:
            self._sending = None
