"""Where `tail` begins: with all that is there, with what was published since a time, or with the last N."""

import heapq
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import NamedTuple

from things_kit.cli.running import WRONG_USE, CommandFailed
from things_kit.engine.broker import Broker
from things_kit.engine.replay import Reading
from things_kit.messaging.errors import UnsupportedError
from things_kit.messaging.message import Message

BEGINNING = datetime.min.replace(tzinfo=UTC)


class Since(NamedTuple):
    """A time, or how many of the last; all where both are None."""

    time: datetime | None = None
    last: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Since":
        """From the command line. Raises CommandFailed."""
        if text == "earliest":
            return cls()
        if text.isdecimal() and int(text) > 0:
            return cls(last=int(text))
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise CommandFailed(
                f"--from {text!r}: expected earliest, a time such as 2026-01-31T12:00, or a number from 1",
                WRONG_USE,
            ) from None
        return cls(time if time.tzinfo else time.replace(tzinfo=UTC))


class Last:
    """The last N of many messages, by the time of their publish."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[tuple[datetime, int, Message]] = []
        self._order = count()

    def add(self, message: Message) -> None:
        """One more."""
        entry = (message.timestamp or BEGINNING, next(self._order), message)
        if len(self._kept) < self._most:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def all(self) -> list[Message]:
        """Those that are left, in the order of time."""
        return [message for *_, message in sorted(self._kept, key=lambda entry: entry[:2])]


def check_retained(broker: Broker) -> None:
    """Raise UnsupportedError if the broker keeps nothing."""
    if not broker.capabilities.retained:
        raise UnsupportedError(
            f"{broker.url.display} keeps nothing for those who come later: leave --from out"
        )


async def messages_since(broker: Broker, topic: str, since: Since) -> AsyncGenerator[Sequence[Message], None]:
    """What is there, in the order in which it comes or of its time, and what comes after it, without end.

    The broker retains messages, see `check_retained`.

    Raises:
        BrokerUnavailable: It was lost.
    """
    last = None if since.last is None else Last(since.last)
    async with Reading(broker.transmission, topic, None, create=False) as reading:
        async for deliveries in reading.batches():
            messages = [delivery.message for delivery in deliveries]
            if last is None:
                yield _published(messages, since.time)
            else:
                for message in messages:
                    last.add(message)
            await reading.acknowledge(deliveries)
        if last is not None:
            yield last.all()
        async for deliveries in reading.follow():
            yield [delivery.message for delivery in deliveries]
            await reading.acknowledge(deliveries)


def _published(messages: Sequence[Message], since: datetime | None) -> Sequence[Message]:
    if since is None:
        return messages
    return [message for message in messages if message.timestamp is None or message.timestamp >= since]
