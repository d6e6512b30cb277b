"""The demo's own count, from the workers' reports and the dead letters: independent of what the kit says of itself."""

import asyncio
from collections import Counter
from collections.abc import Callable

import msgspec

from things_kit.cli.demo.plan import Report
from things_kit.messaging import names
from things_kit.messaging.message import Message


class Tally:
    """Counts every message by its id.

    Attributes:
        verified: How often each message was reported as verified.
        attempts: The last attempt of each of them.
        failed: The messages of which an attempt failed, with the type of the last error.
        dead: The dead letter of each message that has one.
        by_worker: Attempts that each worker reported.
    """

    def __init__(self) -> None:
        self.verified: Counter[str] = Counter()
        self.attempts: dict[str, int] = {}
        self.failed: dict[str, str] = {}
        self.dead: dict[str, Message] = {}
        self.by_worker: Counter[str] = Counter()
        self._seen: set[str | None] = set()
        self._news = asyncio.Event()

    async def report(self, messages: list[Message]) -> None:
        """Count reports; the handler of their topic."""
        for message in messages:
            # A report may come twice, as every message; it is counted once.
            if message.id not in self._seen:
                self._seen.add(message.id)
                self._count(msgspec.json.decode(message.value, type=Report))
        self._news.set()

    async def bury(self, message: Message) -> None:
        """Count a dead letter; the handler of their topic."""
        self.dead[message.id or ""] = message
        self._news.set()

    @property
    def settled(self) -> int:
        """Messages that were verified or are dead letters."""
        return len(self.verified.keys() | self.dead.keys())

    @property
    def twice(self) -> set[str]:
        """Messages that were verified more than once."""
        return {message_id for message_id, times in self.verified.items() if times > 1}

    @property
    def again(self) -> set[str]:
        """Messages that came again though no attempt had failed: what a killed worker held.

        Where the broker does not count deliveries, those that the worker had not begun cannot be told from others.
        """
        counted = {message_id for message_id, attempt in self.attempts.items() if attempt > 1}
        return self.twice | (counted - self.failed.keys())

    def reasons(self) -> dict[str, str]:
        """The type of error of each dead letter: its last name."""
        return {
            message_id: message.headers.get(names.ERROR_TYPE, "").rpartition(".")[2]
            for message_id, message in self.dead.items()
        }

    async def until(self, satisfied: Callable[[], bool], patience: float) -> bool:
        """Wait until something holds; False if for `patience` seconds there was no news and it still does not."""
        while not satisfied():
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), patience)
            except TimeoutError:
                return satisfied()
        return True

    def _count(self, report: Report) -> None:
        self.by_worker[report.worker] += 1
        if report.error_type is None:
            self.verified[report.message_id] += 1
            self.attempts[report.message_id] = max(report.attempt, self.attempts.get(report.message_id, 1))
        else:
            self.failed[report.message_id] = report.error_type
