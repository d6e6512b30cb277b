"""Publishing: in requests as the service takes them, many at once, without disturbing the order of a key.

All messages of a request have the same ordering key or none: the service refuses others.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

from google.api_core import exceptions
from google.pubsub_v1 import types

from things_kit.brokers.pubsub.channel import Channel
from things_kit.brokers.pubsub.connection import Connection
from things_kit.brokers.pubsub.errors import ERRORS
from things_kit.brokers.pubsub.names import topic_id
from things_kit.brokers.pubsub.options import REQUEST_BYTES, Settings
from things_kit.brokers.pubsub.wire import Proto, pack
from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError
from things_kit.messaging.message import Message

MESSAGES: Final = 1000
"""The most messages that a request may have."""

SIDE_BY_SIDE: Final = 50
"""Requests under way at once over one channel: a connection has room for a hundred, and others need it as well."""

CHANNELS: Final = 8
"""So many channels at most have them: each key is a request, which takes some ten milliseconds, and far off a hundred."""

ROOM: Final = 4 * 2**20
"""Bytes of a batch that may be under way over more than one channel: a slow line has to get each request through in time."""

UNORDERED: Final = 4
"""Of these, the most of one topic whose messages have no ordering key."""

Numbered: TypeAlias = tuple[int, Message]
"""A message, and its index in the batch."""

PUBLISH_REQUEST: Final[Any] = types.PublishRequest.pb()


class Publication:
    """One batch on its way."""

    def __init__(self, connection: Connection, settings: Settings, messages: Sequence[Message]) -> None:
        self._results: list[Exception | None] = [None] * len(messages)
        self._connection = connection
        self._settings = settings
        self._order = settings.options.ordering
        self._messages = messages
        self._lost = False

    async def send(self) -> Sequence[Exception | None]:
        """Publish all; the results are those of `Driver.send`. Raises ConnectionLost."""
        chains = self._chains()
        waiting = iter(chains)

        async def work(number: int) -> None:
            for chain in waiting:
                if not self._lost:
                    await self._send_chain(chain, self._connection.calls(number // SIDE_BY_SIDE))

        workers = map(work, range(self._abreast(len(chains))))
        for error in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error
        return self._results

    def _abreast(self, chains: int) -> int:
        """How many requests may be under way at once: over several channels where they are small."""
        size = sum(len(message.value) for message in self._messages)
        fitting = ROOM * chains // max(1, size)
        return min(chains, max(SIDE_BY_SIDE, min(CHANNELS * SIDE_BY_SIDE, fitting)))

    def _chains(self) -> Sequence[Sequence[Numbered]]:
        """What is to be sent one after the other: the messages of an ordering key, and parts of those without."""
        keyed: dict[tuple[str, bytes | None], list[Numbered]] = {}
        free: dict[str, list[Numbered]] = {}
        for each in enumerate(self._messages):
            message = each[1]
            if self._order == "topic":
                keyed.setdefault((message.topic, None), []).append(each)
            elif self._order == "key" and message.key is not None:
                keyed.setdefault((message.topic, message.key), []).append(each)
            else:
                free.setdefault(message.topic, []).append(each)
        parts = ((each, min(UNORDERED, -(-len(each) // MESSAGES))) for each in free.values())
        return [*keyed.values(), *(each[start::step] for each, step in parts for start in range(step))]

    async def _send_chain(self, chain: Sequence[Numbered], channel: Channel) -> None:
        """One request after the other. What follows a lost one is not sent."""
        topic = chain[0][1].topic
        try:
            path = f"projects/{self._settings.project}/topics/{topic_id(topic)}"
        except ConfigError as error:
            self._refuse([number for number, _ in chain], PublishError(str(error)))
            return
        for part in _parts(chain):
            await self._send_part(topic, path, part, channel)

    async def _send_part(self, topic: str, path: str, part: Sequence[Numbered], channel: Channel) -> None:
        request = PUBLISH_REQUEST(topic=path)
        numbers, make = [], request.messages.add
        for number, message in part:
            try:
                pack(message, self._order, make)
            except MessageTooLarge as error:
                self._results[number] = error
            else:
                numbers.append(number)
        if numbers:
            await self._send_request(topic, request, numbers, channel)

    async def _send_request(
        self, topic: str, request: Proto, numbers: Sequence[int], channel: Channel
    ) -> None:
        if (size := request.ByteSize()) > REQUEST_BYTES:
            error: Exception = MessageTooLarge(
                f"a message for {topic!r} has {size} bytes as Pub/Sub has it; it takes {REQUEST_BYTES}"
            )
        else:
            try:
                with self._connection.during(
                    f"publishing to {topic!r}", through=(exceptions.GoogleAPIError,), over=channel
                ):
                    await channel.publisher.publish(
                        types.PublishRequest.wrap(request), retry=None, timeout=self._settings.patience
                    )
            except (exceptions.GoogleAPIError, ConnectionLost) as raised:
                error = raised
            else:
                return
        if len(numbers) > 1 and isinstance(error, MessageTooLarge | exceptions.InvalidArgument):
            # The service refuses a request for a single message in it, and does not say which
            middle = len(numbers) // 2
            for half in (slice(middle), slice(middle, None)):
                again = PUBLISH_REQUEST(topic=request.topic, messages=request.messages[half])
                await self._send_request(topic, again, numbers[half], channel)
            return
        self._refuse(numbers, ERRORS.refusal(error, topic))

    def _refuse(self, numbers: Sequence[int], error: Exception) -> None:
        if isinstance(error, ConnectionLost):
            self._lost = True
            raise error
        for number in numbers:
            self._results[number] = error


def _parts(chain: Sequence[Numbered]) -> Iterator[Sequence[Numbered]]:
    """As many messages as about fill a request."""
    start, size = 0, 0
    for index, (_, message) in enumerate(chain):
        size += len(message.value)
        if index > start and (size > REQUEST_BYTES or index - start == MESSAGES):
            yield chain[start:index]
            start, size = index, len(message.value)
    yield chain[start:]
