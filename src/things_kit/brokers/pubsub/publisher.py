"""Publishing: batches as the service takes them, several at once, without disturbing the order of a key."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

from google.api_core import exceptions
from google.pubsub_v1 import types

from things_kit.brokers.pubsub.connection import Connection
from things_kit.brokers.pubsub.errors import ERRORS, refused
from things_kit.brokers.pubsub.messages import Packer, Proto
from things_kit.brokers.pubsub.names import topic_id
from things_kit.brokers.pubsub.options import REQUEST_BYTES, Settings
from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError
from things_kit.messaging.message import Message

MESSAGES: Final = 1000
"""The most messages that a request may have."""

SIDE_BY_SIDE: Final = 4
"""Requests of one topic under way at once: one takes the service some ten milliseconds."""

FRAMING: Final = 8
"""Bytes around each message in a request, at most."""

Numbered: TypeAlias = tuple[int, Proto]
"""A message, and its index in the batch."""

PUBLISH_REQUEST: Final[Any] = types.PublishRequest.pb()


class Publication:
    """One batch on its way."""

    def __init__(self, connection: Connection, settings: Settings, messages: Sequence[Message]) -> None:
        self.results: list[Exception | None] = [None] * len(messages)
        self._connection = connection
        self._settings = settings
        self._messages = messages

    async def send(self) -> None:
        """Publish all; what was refused is in `results`. Raises ConnectionLost."""
        chains = [
            self._send_chain(topic, chain)
            for topic, packed in self._packed().items()
            for chain in _chains(packed)
        ]
        ended = await asyncio.gather(*chains, return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    def _packed(self) -> dict[str, list[Numbered]]:
        packer = Packer(self._settings.options.ordering)
        topics: dict[str, list[Numbered]] = {}
        for index, message in enumerate(self._messages):
            try:
                packed = packer.pack(message)
            except MessageTooLarge as error:
                self.results[index] = error
                continue
            topics.setdefault(message.topic, []).append((index, packed))
        return topics

    async def _send_chain(self, topic: str, chain: Sequence[Numbered]) -> None:
        """One request after the other. What follows a lost one is not sent: it may have the same key."""
        try:
            path = f"projects/{self._settings.project}/topics/{topic_id(topic)}"
        except ConfigError as error:
            self._refuse(chain, PublishError(str(error)))
            return
        for request in self._requests(topic, chain):
            await self._send_request(topic, path, request)

    def _requests(self, topic: str, chain: Sequence[Numbered]) -> Iterator[list[Numbered]]:
        request: list[Numbered] = []
        room = limit = REQUEST_BYTES - 1000  # for the topic's name
        for index, message in chain:
            size = message.ByteSize() + FRAMING
            if size > limit:
                self.results[index] = MessageTooLarge(
                    f"a message for {topic!r} has {size} bytes as Pub/Sub has it; it takes {limit}"
                )
                continue
            if size > room or len(request) == MESSAGES:
                yield request
                request, room = [], limit
            request.append((index, message))
            room -= size
        if request:
            yield request

    async def _send_request(self, topic: str, path: str, request: Sequence[Numbered]) -> None:
        asked = PUBLISH_REQUEST(topic=path, messages=[message for _, message in request])
        try:
            await self._connection.publisher.publish(
                types.PublishRequest.wrap(asked), retry=None, timeout=self._settings.patience
            )
        except ERRORS as error:
            if isinstance(error, exceptions.InvalidArgument) and len(request) > 1:
                # The service refuses a request for a single message in it, and does not say which
                middle = len(request) // 2
                await self._send_request(topic, path, request[:middle])
                await self._send_request(topic, path, request[middle:])
                return
            ours = refused(error, topic)
            if isinstance(ours, ConnectionLost):
                raise ours from error
            self._refuse(request, ours)

    def _refuse(self, request: Sequence[Numbered], error: Exception) -> None:
        for index, _ in request:
            self.results[index] = error


def _chains(packed: Sequence[Numbered]) -> Sequence[Sequence[Numbered]]:
    """Parts of a topic's messages that may be sent at once, as none has a key of another."""
    if len(packed) <= MESSAGES:
        return [packed]
    chains: list[list[Numbered]] = [[] for _ in range(min(SIDE_BY_SIDE, -(-len(packed) // MESSAGES)))]
    for number, each in enumerate(packed):
        key = each[1].ordering_key
        chains[(hash(key) if key else number) % len(chains)].append(each)
    return chains
