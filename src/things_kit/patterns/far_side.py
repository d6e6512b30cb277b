"""The far side of a bridge: publishes batches in order, waits out outages, and lets no message overtake its key."""

import asyncio
import logging
from collections import Counter
from collections.abc import Hashable, Sequence

import msgspec

from things_kit.engine.broker import Broker
from things_kit.engine.outbound import chunks, prepare
from things_kit.engine.publishes import Named
from things_kit.messaging.errors import BrokerUnavailable
from things_kit.messaging.message import Message

log = logging.getLogger("things_kit.bridge")


class Behind(Exception):
    """An earlier message of this key was refused, and has to arrive first."""


class FarSide:
    """Publishes to the target of a bridge: one send at a time, in the order of the calls.

    A producer would send on what follows a refused message of the same key, and fail when the broker stays away;
    this waits for ever.
    """

    def __init__(self, target: Broker) -> None:
        self._transmission = target.transmission
        self._turn = asyncio.Lock()
        self._waits_for: Exception | None = None

    @property
    def trouble(self) -> str | None:
        """Why nothing can be published; None if the last time it could."""
        if self._transmission.away is not None:
            return f"{self._transmission.url.display} is away"
        return None if self._waits_for is None else str(self._waits_for)

    async def publish(
        self, messages: Sequence[Message], names: Sequence[str | None] | None = None
    ) -> list[Exception | None]:
        """One result each: None when it is confirmed, else why it was refused, or `Behind`.

        By the `names` a target knows what it has had before, where it can.
        """
        ready, refused = prepare(
            messages, self._transmission.driver.capabilities.max_message_bytes, ours=True
        )
        if names is not None and any(names):
            kept = (name for index, name in enumerate(names) if index not in refused)
            ready = [
                Named(**msgspec.structs.asdict(message), publish=name)
                for message, name in zip(ready, kept, strict=True)
            ]
        async with self._turn:
            if not refused:
                results = await self._send(ready)
            else:
                results = await self._send_fit(messages, ready, refused)
        if any(results):
            hold_back(messages, results)
        return results

    async def _send_fit(
        self, messages: Sequence[Message], ready: Sequence[Message], refused: dict[int, Exception]
    ) -> list[Exception | None]:
        """Send those that were not refused here, nor are behind one that was."""
        results = [refused.get(index) for index in range(len(messages))]
        prepared = dict(
            zip((index for index in range(len(messages)) if index not in refused), ready, strict=True)
        )
        hold_back(messages, results)
        going = [index for index, result in enumerate(results) if result is None]
        sent = await self._send([prepared[index] for index in going])
        for index, result in zip(going, sent, strict=True):
            results[index] = result
        return results

    async def _send(self, messages: Sequence[Message]) -> list[Exception | None]:
        most = self._transmission.driver.capabilities.max_batch
        results: list[Exception | None] = []
        for start, end in chunks(messages, most):
            results += await self._send_patiently(messages[start:end])
        return results

    async def _send_patiently(self, messages: Sequence[Message]) -> list[Exception | None]:
        loop, url = asyncio.get_running_loop(), self._transmission.url
        while True:
            deadline = loop.time() + url.engine.publish_timeout
            results = await self._transmission.send(messages, deadline, insist=True)
            away = next((result for result in results if isinstance(result, BrokerUnavailable)), None)
            if away is None:
                if self._waits_for is not None:
                    log.info("%s is back", url.display)
                self._waits_for = None
                return results
            if self._waits_for is None:
                log.warning("%s; the bridge waits for it", away)
            self._waits_for = away


def lane_of(message: Message) -> Hashable:
    """Which messages must not overtake one another; None for a message that is free of order."""
    return None if message.key is None else (message.topic, message.key)


def hold_back(messages: Sequence[Message], results: list[Exception | None]) -> None:
    """Mark what comes after a refused message of its key as `Behind`, also what was confirmed: it is sent again.

    A target that refuses one message and takes a later one of its key in the same call has them out of order;
    sent again, both arrive in order at last.
    """
    closed: set[Hashable] = set()
    for index, message in enumerate(messages):
        lane = lane_of(message)
        if lane is None:
            continue
        if lane in closed:
            results[index] = results[index] or Behind()
        elif results[index] is not None:
            closed.add(lane)


def waves(messages: Sequence[Message]) -> list[Sequence[int]]:
    """Which of a batch, by their indices, may be published together, and which only after those.

    All of it; but of a key that has been refused before, one message at a time: what is behind one that is refused
    again must not have been sent.
    """
    careful = {lane_of(message) for message in messages if message.attempt > 1} - {None}
    if not careful:
        return [range(len(messages))]
    before: Counter[Hashable] = Counter()
    found: dict[int, list[int]] = {}
    for index, message in enumerate(messages):
        lane = lane_of(message)
        number = before[lane] if lane in careful else 0
        before[lane] += 1
        found.setdefault(number, []).append(index)
    return [found[number] for number in sorted(found)]
