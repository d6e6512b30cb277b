"""Publishing: batches as large as Service Bus takes them, one topic beside the other."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeAlias, TypeVar

from things_kit.brokers.servicebus.amqp.connection import AmqpError
from things_kit.brokers.servicebus.amqp.links import Link
from things_kit.brokers.servicebus.client import PATIENCE, Client
from things_kit.brokers.servicebus.errors import ERRORS, REFUSALS
from things_kit.brokers.servicebus.names import entity_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.wire import BATCH, at, batch, copy, pack
from things_kit.engine.driver import ConnectionLost, Later, Scheduled
from things_kit.messaging.errors import MessageTooLarge
from things_kit.messaging.message import Message

MOST: Final = 4500
"""Messages that the service takes in one batch."""

LARGEST: Final = 2**20
"""Bytes of a batch that it takes, also where a single message may be larger."""

AROUND: Final = 8
"""Bytes that a batch adds to a message."""

UNDERWAY: Final = 4
"""Batches of a topic on their way at once, with different keys: a service that is far off is never idle."""

FEW: Final = 1000
"""So many messages go together, whatever their keys."""

ItemT = TypeVar("ItemT")

Numbered: TypeAlias = tuple[int, bytes]
"""A message as it is written, and its place in what is returned."""


class Publisher:
    """Sends the messages of one call. A result for each: None where it is confirmed, else why not."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._sessions = settings.options.sessions
        self._client = client
        self._turns: dict[str, asyncio.Lock] = {}

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Raises ConnectionLost."""
        return await self._send(messages, messages, partial(pack, sessions=self._sessions))

    async def send_later(self, copies: Sequence[Later]) -> Sequence[Exception | None]:
        """Raises ConnectionLost."""
        return await self._send(
            [each.message for each in copies], copies, partial(copy, sessions=self._sessions)
        )

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        """Raises ConnectionLost."""
        return await self._send(
            [each.message for each in entries], entries, partial(at, sessions=self._sessions)
        )

    async def _send(
        self, messages: Sequence[Message], items: Sequence[ItemT], packed: Callable[[ItemT], bytes]
    ) -> Sequence[Exception | None]:
        results: list[Exception | None] = [None] * len(items)
        topics: dict[str, list[Numbered]] = {}
        for index, (message, item) in enumerate(zip(messages, items, strict=True)):
            try:
                topics.setdefault(message.topic, []).append((index, packed(item)))
            except MessageTooLarge as error:
                results[index] = error
        await _all(self._publish(topic, messages, rest, results) for topic, rest in topics.items())
        return results

    async def _publish(
        self,
        topic: str,
        messages: Sequence[Message],
        rest: list[Numbered],
        results: list[Exception | None],
    ) -> None:
        """Send one topic's messages, those of a key in order. Raises ConnectionLost."""
        entity = entity_of(topic)
        async with self._turns.setdefault(entity, asyncio.Lock()):  # for the order's sake
            lanes = _lanes(messages, rest)
            share = len(lanes)
            await _all(self._publish_lane(topic, entity, lane, share, results) for lane in lanes)

    async def _publish_lane(
        self, topic: str, entity: str, rest: list[Numbered], share: int, results: list[Exception | None]
    ) -> None:
        """Send these in order, beside others: all `share` what one batch may have, for a slow line has to get it through in time.

        If the service refuses a batch, each of its messages is sent alone, so that only the culprit fails. So no other
        batch with the same keys may be on its way meanwhile.
        """
        alone = 0
        while rest:
            count = 0
            try:
                sender = await self._client.sender(entity)
                count = 1 if alone else _fitting(rest, _largest(sender) // share)
                async with self._client.within(PATIENCE):
                    await _send_batch(sender, [payload for _, payload in rest[:count]])
            except (AmqpError, OSError) as error:
                trouble = ERRORS.refusal(error, topic)
                if isinstance(trouble, ConnectionLost):
                    raise trouble from error
                if not count or not isinstance(error, AmqpError) or error.condition not in REFUSALS:
                    count = len(rest)  # it is about the topic
                elif count > 1:
                    alone = count
                    continue
                for index, _ in rest[:count]:
                    results[index] = trouble
            alone = max(0, alone - count)
            del rest[:count]


async def _all(each: Iterable[Awaitable[None]]) -> None:
    """Do these side by side; what one raises is raised when all have ended, so that nothing is sent after that."""
    works = list(each)
    if len(works) == 1:  # the usual case, which needs no task
        await works[0]
        return
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if outcome is not None:
            raise outcome


def _lanes(messages: Sequence[Message], rest: list[Numbered]) -> list[list[Numbered]]:
    """What is sent one after the other: those of a key are in one of them. Few messages are one."""
    count = min(UNDERWAY, -(-len(rest) // FEW))
    if count == 1:
        return [rest]
    lanes: list[list[Numbered]] = [[] for _ in range(count)]
    for each in rest:
        key = messages[each[0]].key
        lanes[(each[0] if key is None else zlib.crc32(key)) % count].append(each)
    return lanes


async def _send_batch(sender: Link, payloads: Sequence[bytes]) -> None:
    if len(payloads) == 1:
        await sender.send(payloads[0])
    else:
        await sender.send(batch(payloads), BATCH)


def _largest(sender: Link) -> int:
    batch_size = sender.properties.get("com.microsoft:max-message-batch-size") or LARGEST
    return min(batch_size, sender.largest or batch_size)


def _fitting(rest: Sequence[Numbered], largest: int) -> int:
    """How many of them one batch takes; at least one."""
    size = 0
    for count, (_, payload) in enumerate(rest[:MOST]):
        size += len(payload) + AROUND
        if count and size > largest:
            return count
    return min(len(rest), MOST)
