"""Publishing: batches as large as Service Bus takes them, one topic beside the other."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

from things_kit.brokers.servicebus.amqp.connection import AmqpError
from things_kit.brokers.servicebus.amqp.links import SendingLink
from things_kit.brokers.servicebus.client import Client
from things_kit.brokers.servicebus.errors import ERRORS, REFUSALS
from things_kit.brokers.servicebus.names import entity_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.wire import BATCH, batch, copy, pack
from things_kit.engine.driver import ConnectionLost, Later
from things_kit.messaging.errors import MessageTooLarge
from things_kit.messaging.message import Message

ANSWER: Final = 10.0
"""Seconds for which a batch waits for its confirmation."""

MOST: Final = 4500
"""Messages that the service takes in one batch."""

LARGEST: Final = 2**20
"""Bytes of a batch that it takes, also where a single message may be larger."""

AROUND: Final = 8
"""Bytes that a batch adds to a message."""

ItemT = TypeVar("ItemT")


class Publisher:
    """Sends the messages of one call. A result for each: None where it is confirmed, else why not."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._sessions = settings.options.sessions
        self._client = client
        self._turns: dict[str, asyncio.Lock] = {}

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Raises ConnectionLost."""
        return await self._send(
            messages, lambda each: each.topic, lambda each: pack(each, sessions=self._sessions)
        )

    async def send_later(self, copies: Sequence[Later]) -> Sequence[Exception | None]:
        """Raises ConnectionLost."""
        now = datetime.now(UTC)

        def packed(later: Later) -> bytes:
            return copy(later, later.due if later.due > now else None, sessions=self._sessions)

        return await self._send(copies, lambda each: each.message.topic, packed)

    async def _send(
        self, items: Sequence[ItemT], topic_of: Callable[[ItemT], str], packed: Callable[[ItemT], bytes]
    ) -> Sequence[Exception | None]:
        results: list[Exception | None] = [None] * len(items)
        topics: dict[str, dict[int, bytes]] = {}
        for index, item in enumerate(items):
            try:
                topics.setdefault(topic_of(item), {})[index] = packed(item)
            except MessageTooLarge as error:
                results[index] = error
        outcomes = await asyncio.gather(
            *(self._publish(topic, payloads) for topic, payloads in topics.items()), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            for index, result in outcome.items():
                results[index] = result
        return results

    async def _publish(self, topic: str, payloads: dict[int, bytes]) -> dict[int, Exception]:
        """Send one topic's messages, in order; returns what was refused. Raises ConnectionLost."""
        refused: dict[int, Exception] = {}
        rest, entity = dict(payloads), entity_of(topic)
        async with self._turns.setdefault(
            entity, asyncio.Lock()
        ):  # one batch after the other, for the order's sake
            try:
                while rest:
                    sender = await self._client.sender(entity)
                    chosen = _first(rest, _largest(sender))
                    await self._send_chosen(sender, {index: rest[index] for index in chosen}, topic, refused)
                    for index in chosen:
                        del rest[index]
            except (AmqpError, OSError) as error:
                trouble = ERRORS.refusal(error, topic)
                if isinstance(trouble, ConnectionLost):
                    raise trouble from error
                refused.update(dict.fromkeys(rest, trouble))
        return refused

    async def _send_chosen(
        self, sender: SendingLink, chosen: dict[int, bytes], topic: str, refused: dict[int, Exception]
    ) -> None:
        """Send a batch; if the service refuses it, each message alone, so that only the culprit fails."""
        single = len(chosen) == 1
        payload = next(iter(chosen.values())) if single else batch(chosen.values())
        try:
            async with self._client.within(ANSWER):
                await sender.send(payload, 0 if single else BATCH)
        except AmqpError as error:
            if error.condition not in REFUSALS:
                raise
            if single:
                refused.update(dict.fromkeys(chosen, ERRORS.refusal(error, topic)))
                return
            for index, payload in chosen.items():
                sender = await self._client.sender(entity_of(topic))
                await self._send_chosen(sender, {index: payload}, topic, refused)


def _largest(sender: SendingLink) -> int:
    batch_size = sender.properties.get("com.microsoft:max-message-batch-size") or LARGEST
    return min(batch_size, sender.largest or batch_size)


def _first(payloads: dict[int, bytes], largest: int) -> list[int]:
    """Of those that are left, by index, as many as one batch takes; at least one."""
    chosen: list[int] = []
    size = 0
    for index, payload in payloads.items():
        size += len(payload) + AROUND
        if chosen and (size > largest or len(chosen) == MOST):
            break
        chosen.append(index)
    return chosen
