"""Publishing: batches as large as Service Bus takes them, one topic beside the other."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusSender
from azure.servicebus.exceptions import MessageSizeExceededError

from things_kit.brokers.servicebus.errors import (
    CLIENT,
    UNKNOWN,
    is_refusal,
    is_too_large,
    sentence,
    translated,
)
from things_kit.brokers.servicebus.links import Links
from things_kit.brokers.servicebus.messages import pack
from things_kit.brokers.servicebus.names import entity_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError
from things_kit.messaging.message import Message

TIMEOUT: Final = 15.0
"""Seconds for which a batch waits for its confirmation before the connection is taken for lost."""


class Item(msgspec.Struct, eq=False, gc=False):
    """A packed message, and its place among the results."""

    index: int
    packed: ServiceBusMessage


class Publisher:
    """Sends the messages of one call."""

    def __init__(self, settings: Settings, links: Links) -> None:
        self._settings = settings
        self._links = links

    async def send(self, messages: Sequence[Message]) -> list[Exception | None]:
        """One result a message. Raises ConnectionLost."""
        results: list[Exception | None] = [None] * len(messages)
        topics: dict[str, list[Item]] = {}
        sessions = self._settings.options.sessions
        for index, message in enumerate(messages):
            try:
                item = Item(index, pack(message, sessions=sessions))
            except MessageTooLarge as error:
                results[index] = error
            else:
                topics.setdefault(message.topic, []).append(item)
        if len(topics) == 1:
            [(topic, items)] = topics.items()
            await self.send_items(topic, items, results)
        elif topics:
            sending = [self.send_items(topic, items, results) for topic, items in topics.items()]
            for outcome in await asyncio.gather(*sending, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        return results

    async def send_items(self, topic: str, items: Sequence[Item], results: list[Exception | None]) -> None:
        """Send one topic's messages, in order, and note what became of each. Raises ConnectionLost."""
        entity, rest = entity_of(topic), items
        async with self._links.lock(entity):
            try:
                sender = await self._links.sender(entity)
                while rest:
                    rest = await self._send_batch(sender, topic, rest, results)
            except CLIENT as error:
                await self._links.drop(entity)
                trouble = _final(error, topic)
                for item in rest:
                    results[item.index] = trouble
            except BaseException:  # cancelled in the middle of a frame: the link cannot be used any more
                await self._links.drop(entity)
                raise

    async def _send_batch(
        self, sender: ServiceBusSender, topic: str, items: Sequence[Item], results: list[Exception | None]
    ) -> Sequence[Item]:
        """Send as many as one batch takes; returns the others."""
        batch = await sender.create_message_batch()
        chosen: list[Item] = []
        full = len(items)
        for place, item in enumerate(items):
            try:
                batch.add_message(item.packed)
            except MessageSizeExceededError:
                full = place
                break
            except (TypeError, ValueError, AttributeError) as error:  # what the client cannot encode
                results[item.index] = refusal = _refusal(error, topic)
                refusal.__cause__ = error
            else:
                chosen.append(item)
        if chosen:
            await self._send_whole(sender, batch, topic, chosen, results)
        elif full < len(items):
            await self._send_alone(sender, topic, items[full], results)
            full += 1
        return items[full:]

    async def _send_whole(
        self,
        sender: ServiceBusSender,
        batch: object,
        topic: str,
        items: Sequence[Item],
        results: list[Exception | None],
    ) -> None:
        """Send a batch; if the service refuses it as a whole, each message alone, so that only the culprit fails."""
        try:
            await sender.send_messages(batch, timeout=TIMEOUT)  # type: ignore[arg-type]
        except CLIENT as error:
            if not is_refusal(error):
                raise
            for item in items:
                await self._send_alone(sender, topic, item, results)

    async def _send_alone(
        self, sender: ServiceBusSender, topic: str, item: Item, results: list[Exception | None]
    ) -> None:
        try:
            await sender.send_messages(item.packed, timeout=TIMEOUT)
        except CLIENT as error:
            if not is_refusal(error):
                raise
            results[item.index] = refusal = _refusal(error, topic)
            refusal.__cause__ = error


def _refusal(error: BaseException, topic: str) -> PublishError:
    if is_too_large(error):
        return MessageTooLarge(
            f"a message for {topic!r} is too large for Service Bus: {sentence(error)}; Standard takes 256 KiB with all "
            "that is around it, Premium what the topic's settings say"
        )
    return PublishError(f"Service Bus refuses a message for {topic!r}: {sentence(error)}")


def _final(error: BaseException, topic: str) -> Exception:
    """Why none of a topic's messages was sent. Raises ConnectionLost if that may change."""
    if isinstance(error, UNKNOWN):
        return UnknownTopic(topic)
    trouble = translated(error, f"publishing to {topic!r}")
    if isinstance(trouble, ConnectionLost):
        raise trouble from error
    if isinstance(trouble, ConfigError):
        trouble = PublishError(str(trouble))
    trouble.__cause__ = error
    return trouble
