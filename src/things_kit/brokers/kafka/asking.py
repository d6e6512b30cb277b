"""What the engine has asked a receiving thread for, and what the thread answers."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from things_kit.brokers.kafka.parting import told
from things_kit.engine.driver import ConnectionLost, Delivery, Inbox

SLACK: Final = 1.0
"""Seconds beyond its time for which a thread's answer is waited for: it may be serving a rebalance."""


ROUND: Final = 0.5
"""Seconds in which a thread answers a question that was withdrawn: several of its rounds."""


class Asked(msgspec.Struct, eq=False):
    """Up to so many messages (none any more, if it was withdrawn), until that moment of the monotonic clock."""

    limit: int
    until: float

    @property
    def over(self) -> bool:
        """Whether it is to be answered, though nothing has come."""
        return not self.limit or time.monotonic() >= self.until


class Asking:
    """One question at a time. All methods but `answer` and `tell` are called on the loop.

    Attributes:
        asked: What is to be answered. Set on the loop, taken away by the thread with its answer.
        failure: Why nothing more comes; None while something may.
    """

    def __init__(self, topic: str, inbox: Inbox) -> None:
        self.asked: Asked | None = None
        self.failure: Exception | None = None
        self._topic = topic
        self._inbox = inbox
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[int] | None = None
        self._ended = asyncio.Event()
        self._quiet = False

    async def fetch(self, limit: int, wait: float, wake: Callable[[], object]) -> None:
        """See `Fetching.fetch`. `wake` tells the thread to look; a call that was cancelled is answered first."""
        while self.failure is None:
            mine = self._answer is None
            answer = self._ask(limit, wait) if self._answer is None else self._answer
            wake()
            try:
                await asyncio.wait({answer}, timeout=wait + SLACK)
            except asyncio.CancelledError:
                self._withdraw()
                await asyncio.wait({answer}, timeout=ROUND)  # what comes after us is not ours to take
                raise
            if not answer.done():
                self._withdraw()
            if self.failure is None and (mine or not answer.done() or answer.result()):
                return
        raise self.failure

    def _ask(self, limit: int, wait: float) -> "asyncio.Future[int]":
        self._answer = self._loop.create_future()
        self.asked = Asked(limit, time.monotonic() + wait)
        return self._answer

    def _withdraw(self) -> None:
        asked = self.asked
        if asked is not None:
            asked.limit = 0

    def quiesce(self) -> None:
        """Nothing more goes to the inbox: what comes is not finished, so it is not committed, and comes again."""
        self._quiet = True
        self._withdraw()

    def _answered(self, deliveries: Sequence[Delivery]) -> None:
        answer, self._answer = self._answer, None
        try:
            if not self._quiet:
                self._inbox.put(deliveries)
        finally:
            if answer is not None:
                answer.set_result(len(deliveries))

    def end(self, failure: Exception | None) -> Exception:
        """The thread is done; says what whoever still asks is told."""
        self.failure = failure or ConnectionLost(f"the consumer of {self._topic!r} was closed")
        self._answered(())
        self._ended.set()
        return self.failure

    async def ended(self, within: float) -> None:
        """Wait for `end`, but no longer than so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._ended.wait()

    # --- in the thread

    def answer(self, deliveries: Sequence[Delivery]) -> bool:
        """What has come, and nothing more for this question. False if nobody is there any more."""
        self.asked = None
        return self.tell(self._answered, deliveries)

    def tell(self, callback: Callable[..., None], *arguments: Any) -> bool:
        """Have the loop call back. False if it is closed: nobody is there any more."""
        return told(self._loop, callback, *arguments)
