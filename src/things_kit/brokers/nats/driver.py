"""`nats://` and `tls://`: NATS JetStream, through nats-py.

    nats://localhost:4222                    one server
    tls://user:password@a:4222,b:4222        a cluster, encrypted
    nats://token@localhost                   a token in the place of a user

The options are those of `NATSOptions`. A topic is the subject of a stream, found by that subject or created for it; a
group is a durable pull consumer of the stream, with explicit acknowledgements. Messages stay after they were handled,
as long as the stream keeps them.
"""

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Self

from things_kit.brokers.nats.admin import Missed, Streams
from things_kit.brokers.nats.connection import Connection
from things_kit.brokers.nats.errors import OPENING
from things_kit.brokers.nats.inbox import InboxReceiver
from things_kit.brokers.nats.marks import Marks
from things_kit.brokers.nats.options import Settings, check_topic
from things_kit.brokers.nats.publishing import Row, exchanged, impossible, judged, pages, too_large
from things_kit.brokers.nats.receiver import NATSReceiver, Past
from things_kit.brokers.nats.schedules import Scheduler
from things_kit.brokers.nats.shelves import SINCE
from things_kit.brokers.nats.wire import envelope, raw_headers, size_of
from things_kit.engine.driver import (
    RESERVE,
    Capabilities,
    ConnectionLost,
    Subscription,
    UnknownTopic,
)
from things_kit.engine.naming import is_inbox
from things_kit.engine.publishes import PublishIds
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ClosedError, ConfigError
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP

if TYPE_CHECKING:
    from things_kit.engine.facts import Facts, Question

log = logging.getLogger("things_kit.nats")

OVERHEAD: Final = 1024
"""Bytes of a message that its headers of ours may take."""

DEFAULT_PAYLOAD: Final = 1_048_576
"""What a server takes unless it is told otherwise."""


class NATSDriver:
    """One connection for everything, replaced by another when it is lost."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._set_capabilities(DEFAULT_PAYLOAD)
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._closed = False
        self._past = Past()
        self._missed: Missed = {}
        self._publishes = PublishIds()
        self._by_id = settings.options.deduplicate == "id"
        self._envelope = envelope()
        scheduler = Scheduler(settings, self._connected, self._streams_over, self.send, self._publishes)
        self.schedule, self.cancel, self.upcoming = scheduler.schedule, scheduler.cancel, scheduler.upcoming

    def _set_capabilities(self, payload: int, *, schedules: bool = False) -> None:
        options = self._settings.options
        most = payload - OVERHEAD - RESERVE
        self.capabilities = Capabilities(
            delay=True,
            lease=options.lease,
            retained=True,
            attempts=True,
            suspects=True,
            counts_releases=True,
            lasting_inbox=False,
            schedule_ids=schedules,
            schedules=schedules,
            carried=math.inf,  # before 2.12, and what waits from then
            max_message_bytes=most
            if options.max_message_bytes is None
            else min(most, options.max_message_bytes),
        )

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver for `nats://HOST:PORT,HOST:PORT?OPTION=VALUE`."""
        return cls(Settings.from_url(url))

    async def open(self) -> None:
        """Connect, and see that JetStream is there."""
        connection = await self._connected()
        await Streams(connection, self._settings.options, self._missed, OPENING).account()
        self._set_capabilities(connection.max_payload, schedules=connection.release >= SINCE)

    async def close(self) -> None:
        """Hang up."""
        self._closed = True
        if self._connection is not None:
            await self._connection.close()

    async def ping(self) -> None:
        """Ask JetStream for an answer."""
        await (await self._streams()).account()

    async def _connected(self) -> Connection:
        """The connection, made anew if it was lost, to any of the servers."""
        async with self._connecting:
            if self._closed:
                raise ClosedError(f"{self._settings.url.display} is closed")
            if self._connection is not None:
                if self._connection.alive:
                    return self._connection
                lost, self._connection = self._connection, None
                await lost.close()
            self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> Connection:
        servers = self._settings.servers
        failures: list[ConnectionLost] = []
        for server in random.sample(servers, len(servers)):
            connection = Connection(self._settings, server)
            try:
                await connection.open()
            except ConnectionLost as error:
                failures.append(error)
            else:
                return connection
        raise ConnectionLost("; ".join(map(str, failures))) from failures[-1]

    async def _streams(self) -> Streams:
        return self._streams_over(await self._connected())

    def _streams_over(self, connection: Connection) -> Streams:
        return Streams(connection, self._settings.options, self._missed)

    # --- topics

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the stream of a topic, and its groups."""
        check_topic(topic)
        streams = await self._streams()
        await streams.declare(topic)
        for group in groups:
            await streams.join(topic, group, "earliest")

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete a topic's stream; of a stream with other subjects, what is of this one. With a group, that one alone."""
        self._past.forget(topic, group)
        try:
            check_topic(topic)
        except ConfigError:
            return
        connection = await self._connected()
        streams, marks = self._streams_over(connection), Marks(connection, self._settings)
        if group is None:
            if (stream := await streams.remove(topic)) is not None:
                await marks.forget(stream)
        elif (found := await streams.remove_group(topic, group)) is not None:
            await marks.forget(f"{found.stream}.{found.name}")

    async def lag(self, topic: str, group: str) -> int | None:
        """What the group has not acknowledged."""
        check_topic(topic)
        return await (await self._streams()).lag(topic, group)

    async def topics(self) -> Sequence[str]:
        """All subjects of all streams."""
        return await (await self._streams()).topics()

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Of each topic its durable consumers."""
        streams = await self._streams()
        return {topic: await streams.groups(topic) for topic in topics}

    # --- sending

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Publish them in pages, several of which are on their way at once."""
        connection = await self._connected()
        results: list[Exception | None] = [None] * len(messages)
        with self._publishes.of(messages) as ids:
            packed = pages(self._packed(messages, ids, results, connection.max_payload))
            async for page, came in exchanged(connection, packed):
                for (index, _, _), each in zip(page, came, strict=True):
                    results[index] = judged(messages[index].topic, each)
            await self._check_unknown(result for result in results if isinstance(result, UnknownTopic))
            if lost := next((result for result in results if isinstance(result, ConnectionLost)), None):
                raise lost
        return results

    def _packed(
        self, messages: Sequence[Message], ids: Sequence[str], results: list[Exception | None], most: int
    ) -> Iterator[Row]:
        """What is sent; what cannot be sent has its result at once."""
        refused = impossible({message.topic for message in messages})
        for index, message in enumerate(messages):
            if message.topic in refused:
                results[index] = refused[message.topic]
                continue
            by_id = (
                self._by_id and REPLAY_GROUP not in message.headers
            )  # what comes back is to be stored again
            headers = raw_headers(message, self._envelope, None if by_id else ids[index])
            size = size_of(headers, message.value)
            if size > most:
                results[index] = too_large(message.topic, size, most)
                continue
            yield index, (message.topic, message.value, headers), size

    async def _check_unknown(self, unknown: Iterable[UnknownTopic]) -> None:
        """Nobody answers for a stream either while a cluster chooses its leader. Raises ConnectionLost then."""
        for topic in {topic for each in unknown for topic in each.args}:
            with contextlib.suppress(ConfigError):  # without the right to ask
                if await (await self._streams()).find(topic) is not None:
                    raise ConnectionLost(f"the stream of {topic!r} has no leader at the moment")

    # --- receiving

    async def subscribe(self, subscription: Subscription) -> NATSReceiver | InboxReceiver:
        """Join the group, or make one that vanishes with us."""
        topic, group = subscription.topic, subscription.group
        check_topic(topic)
        connection = await self._connected()
        streams = self._streams_over(connection)
        if is_inbox(topic):
            inbox = InboxReceiver(connection, streams, subscription, self._past)
            await inbox.begin()
            return inbox
        start = self._past.places.get((topic, group), subscription.start)
        if subscription.ephemeral and not subscription.create:
            start = "earliest" if subscription.past else "latest"
        found = await streams.join(
            topic, group, start, ephemeral=subscription.ephemeral, create=subscription.create
        )
        receiver = NATSReceiver(connection, self._settings, streams, subscription, found, self._past)
        await receiver.begin()
        return receiver

    async def facts(self, question: "Question") -> "Facts":
        """How things are at the server."""
        from things_kit.brokers.nats.facts import facts_of  # noqa: PLC0415 - nobody else needs it

        return await facts_of(await self._connected(), self._settings, question)
