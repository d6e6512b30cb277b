"""Publishing: requests of up to ten messages, several at once, with the order of each key kept."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

import msgspec
from botocore.exceptions import ClientError

from things_kit.brokers.sqs import names
from things_kit.brokers.sqs.admin import Admin
from things_kit.brokers.sqs.clients import Clients
from things_kit.brokers.sqs.errors import ERRORS, MISSING, code_of, repeated
from things_kit.brokers.sqs.options import Settings
from things_kit.brokers.sqs.wire import Entry, pack
from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.engine.publishes import PublishIds
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP

MOST: Final = 10
"""Messages that a request may have."""

IN_ORDER: Final = 100
"""Messages beyond which a publish takes several requests at once: fewer arrive in the order in which they were published."""

Held = Callable[[str], str | None]
"""By the id of a message, the receipt of the delivery with this id that a receiver of ours has in hand."""


class Item(msgspec.Struct, eq=False, gc=False):
    """A message on its way: its place in the batch, what it is in a request, its size, and who comes in order with it."""

    index: int
    entry: Entry
    size: int
    order: str | bytes | None


class Destination(msgspec.Struct, eq=False):
    """Where messages go: an SNS topic, or a queue; with what else every request says."""

    topic: str
    arn: str | None
    url: str | None
    items: list[Item]

    @property
    def body(self) -> str:
        """What an entry calls its body."""
        return "Message" if self.url is None else "MessageBody"


class Publisher:
    """Sends the messages of one call."""

    def __init__(self, settings: Settings, clients: Clients, admin: Admin, held: Held) -> None:
        self._settings = settings
        self._clients = clients
        self._admin = admin
        self._held = held
        self._publishes = PublishIds()

    async def send(self, messages: Sequence[Message]) -> list[Exception | None]:
        """One result a message. Raises ConnectionLost."""
        with self._publishes.of(messages) as publishes:
            return await self._send(messages, publishes)

    async def _send(self, messages: Sequence[Message], publishes: Sequence[str]) -> list[Exception | None]:
        results: list[Exception | None] = [None] * len(messages)
        await self.dispatch(await self._sorted(messages, publishes, results), results)
        return results

    async def dispatch(self, destinations: Sequence[Destination], results: list[Exception | None]) -> None:
        """Send to each what is for it; what cannot be sent to one of them has its result. Raises ConnectionLost."""
        most = self._settings.options.publishers
        await together(
            [
                self._send_stream(destination, stream, results)
                for destination in destinations
                for stream in streams(destination.items, min(most, -(-len(destination.items) // IN_ORDER)))
            ]
        )

    async def _sorted(
        self, messages: Sequence[Message], publishes: Sequence[str], results: list[Exception | None]
    ) -> list[Destination]:
        """The messages by where they go; those that cannot be sent have their result."""
        destinations: dict[tuple[str, str | None], Destination | Exception] = {}
        limit = self._settings.bytes_at_once
        for index, message in enumerate(messages):
            group = message.headers.get(REPLAY_GROUP) if message.headers else None
            where = destinations.get((message.topic, group))
            if where is None:
                where = destinations[message.topic, group] = await self._destination(message.topic, group)
            if isinstance(where, Exception):
                results[index] = where
                continue
            try:
                parcel = pack(message, limit)
            except MessageTooLarge as error:
                results[index] = error
                continue
            entry: Entry = {where.body: parcel.body, "MessageAttributes": parcel.attributes}
            order: str | bytes | None = message.key
            if names.is_fifo(message.topic):
                order = self._keep_order(message, entry, publishes[index])
            where.items.append(Item(index, entry, parcel.size, order))
        return [each for each in destinations.values() if isinstance(each, Destination)]

    def _keep_order(self, message: Message, entry: Entry, publish: str) -> str:
        identity = message.id or ""
        entry["MessageGroupId"] = group = names.message_group(message.key, identity)
        if self._settings.options.deduplicate == "id":
            entry["MessageDeduplicationId"] = names.deduplication_id(identity, self._held(identity))
        else:
            entry["MessageDeduplicationId"] = names.publish_id(publish)
        return group

    async def _destination(self, topic: str, group: str | None) -> Destination | Exception:
        """Where messages of a topic go; those that are replayed go to their group's queue alone."""
        try:
            if group is None and not self._settings.by_queue:
                arn = await self._admin.topic_arn(topic)
                return UnknownTopic(topic) if arn is None else Destination(topic, arn, None, [])
            url = await self._admin.queue_url(topic, group or "")
        except ConfigError as error:
            return PublishError(str(error))
        if url is not None:
            return Destination(topic, None, url, [])
        if self._settings.by_queue:
            return UnknownTopic(topic)
        return PublishError(
            f"the group {group!r} of {topic!r} has no queue, so nothing can be replayed to it: declare it"
        )

    async def _send_stream(
        self, destination: Destination, stream: Sequence[Item], results: list[Exception | None]
    ) -> None:
        cut = heads if names.is_fifo(destination.topic) else chunks
        for chunk in cut(stream, self._settings.bytes_at_once):
            await self._send_chunk(destination, chunk, results)

    async def _send_chunk(
        self, destination: Destination, chunk: Sequence[Item], results: list[Exception | None]
    ) -> None:
        topic, entries = destination.topic, [item.entry for item in chunk]
        try:
            refused = await repeated(self._call(destination), entries, f"publishing to {topic!r}")
        except ClientError as error:
            if code_of(error) in MISSING:
                self._admin.forget(topic)
            trouble = ERRORS.refusal(error, topic)
            if isinstance(trouble, ConnectionLost):
                raise trouble from error
            for item in chunk:
                results[item.index] = trouble
            return
        for number, failure in refused.items():
            results[chunk[number].index] = _why(failure, topic)

    def _call(self, destination: Destination) -> Callable[[Sequence[Entry]], Any]:
        sns, sqs = self._clients.sns, self._clients.sqs
        if destination.url is None:
            return lambda entries: sns.publish_batch(
                TopicArn=destination.arn, PublishBatchRequestEntries=entries
            )
        return lambda entries: sqs.send_message_batch(QueueUrl=destination.url, Entries=entries)


def _why(failure: Entry, topic: str) -> Exception:
    """Why AWS refused one message of several; AWS says of these that sending them again is of no use."""
    trouble = ERRORS.refusal(failure, topic)
    return PublishError(str(trouble)) if isinstance(trouble, ConnectionLost) else trouble


def streams(items: Sequence[Item], most: int) -> list[list[Item]]:
    """Items in up to so many streams of much the same length, those that must stay in order in the same one."""
    if most <= 1:
        return [list(items)] if items else []
    found: list[list[Item]] = [[] for _ in range(most)]
    turn = 0
    for item in items:
        if item.order is None:
            found[turn % most].append(item)
            turn += 1
        else:
            found[hash(item.order) % most].append(item)
    return [stream for stream in found if stream]


def chunks(items: Iterable[Item], limit: int) -> Iterable[list[Item]]:
    """Items in order, by what a request may have."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        if chunk and (len(chunk) == MOST or size + item.size > limit):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += item.size
    if chunk:
        yield chunk


def heads(items: Iterable[Item], limit: int) -> Iterable[list[Item]]:
    """The same for a FIFO topic: no two of a request have the same message group.

    AWS takes or refuses each by itself, so that the second could be there before the first was sent again.
    """
    groups: dict[object, deque[Item]] = {}
    for item in items:
        groups.setdefault(item.order, deque()).append(item)
    while groups:
        yield from chunks([group.popleft() for group in groups.values()], limit)
        groups = {order: group for order, group in groups.items() if group}


async def together(jobs: Sequence[Coroutine[Any, Any, Any]]) -> None:
    """Run them side by side; the first failure ends all, and is raised when all have ended."""
    if len(jobs) <= 1:
        for job in jobs:
            await job
        return
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
