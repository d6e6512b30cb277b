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
import random
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
from nats.aio.msg import Msg

from things_kit.brokers.nats.answers import NO_MESSAGE, NoResponders, Refused, confirmation, unpublished
from things_kit.brokers.nats.attempts import Attempts
from things_kit.brokers.nats.connection import Connection, Outgoing
from things_kit.brokers.nats.options import Settings, check_topic
from things_kit.brokers.nats.receiver import NATSReceiver, Past
from things_kit.brokers.nats.records import TIME, fresh_id, raw_headers, size_of
from things_kit.brokers.nats.streams import Streams
from things_kit.engine.driver import RESERVE, Capabilities, ConnectionLost, Subscription, UnknownTopic
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ClosedError, ConfigError, MessageTooLarge, PublishError
from things_kit.messaging.message import Message

if TYPE_CHECKING:
    from things_kit.engine.diagnosis import Finding, Question

log = logging.getLogger("things_kit.nats")

AT_ONCE: Final = 500
"""Messages whose confirmations are waited for together: a stream has room for so many that are on their way."""

BYTES_AT_ONCE: Final = 1_000_000

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
        # Sent, and perhaps to be sent again, by topic and id
        self._doubtful: set[tuple[str, str | None]] = set()

    def _set_capabilities(self, payload: int) -> None:
        options = self._settings.options
        most = payload - OVERHEAD - RESERVE
        self.capabilities = Capabilities(
            delay=True,
            lease=options.lease,
            retained=True,
            attempts=True,
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
        await self.ping()
        self._set_capabilities(connection.max_payload)

    async def close(self) -> None:
        """Hang up."""
        self._closed = True
        if self._connection is not None:
            await self._connection.close()

    async def ping(self) -> None:
        """Ask JetStream for an answer."""
        await Streams(await self._connected(), self._settings.options).account()

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
        return Streams(await self._connected(), self._settings.options)

    # --- topics

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the stream of a topic, and its groups."""
        check_topic(topic)
        streams = await self._streams()
        await streams.declare(topic)
        for group in groups:
            await streams.join(topic, group, "earliest")

    async def remove(self, topic: str) -> None:
        """Delete a topic's stream; of a stream with other subjects, what is of this one."""
        self._past.forget(topic)
        try:
            check_topic(topic)
        except ConfigError:
            return
        connection = await self._connected()
        stream = await Streams(connection, self._settings.options).remove(topic)
        if stream is not None:
            await Attempts(connection, self._settings).forget(stream)

    async def lag(self, topic: str, group: str) -> int | None:
        """What the group has not acknowledged."""
        check_topic(topic)
        return await (await self._streams()).lag(topic, group)

    # --- sending

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Publish them in pages, each with one wait for all of its confirmations."""
        connection = await self._connected()
        results: list[Exception | None] = [None] * len(messages)
        try:
            for page in self._pages(messages, results, connection.max_payload):
                came = await connection.exchange([each for _, each in page])
                for (index, sent), each in zip(page, came, strict=True):
                    results[index] = await self._judge(connection, messages[index], sent, each)
            await self._check_unknown(result for result in results if isinstance(result, UnknownTopic))
            if lost := next((result for result in results if isinstance(result, ConnectionLost)), None):
                raise lost
        except BaseException:  # all of them are sent again, also those that were confirmed
            self._doubt(messages)
            raise
        return results

    def _pages(
        self, messages: Sequence[Message], results: list[Exception | None], most: int
    ) -> Iterator[list[tuple[int, Outgoing]]]:
        """What is sent at once; what cannot be sent has its result at once."""
        page: list[tuple[int, Outgoing]] = []
        size = 0
        times: dict[datetime | None, str] = {}
        refused = _impossible({message.topic for message in messages})
        for index, message in enumerate(messages):
            if message.topic in refused:
                results[index] = refused[message.topic]
                continue
            headers = raw_headers(message, times)
            bytes_ = size_of(headers, message.value)
            if bytes_ > most:
                results[index] = MessageTooLarge(
                    f"a message for {message.topic!r} has {bytes_} bytes with its headers; this server takes {most}"
                )
                continue
            page.append((index, (message.topic, message.value, headers)))
            size += bytes_
            if len(page) >= AT_ONCE or size >= BYTES_AT_ONCE:
                yield page
                page, size = [], 0
        if page:
            yield page

    async def _judge(
        self, connection: Connection, message: Message, sent: Outgoing, came: Msg | Exception
    ) -> Exception | None:
        """The result for one message."""
        if isinstance(came, NoResponders):
            return UnknownTopic(message.topic)  # see _check_unknown
        if isinstance(came, Exception):
            return came
        try:
            confirmed = confirmation(came.data)
        except msgspec.MsgspecError as error:
            refused = PublishError(f"publishing to {message.topic!r}: somebody answered who is no stream")
            refused.__cause__ = error
            return refused
        if confirmed.error is not None:
            return unpublished(confirmed.error, message.topic)
        if confirmed.duplicate and not self._was_ours(message):
            return await self._again(connection, message, sent, confirmed.stream, confirmed.seq)
        return None

    async def _check_unknown(self, unknown: Iterable[UnknownTopic]) -> None:
        """Nobody answers for a stream either while a cluster chooses its leader. Raises ConnectionLost then."""
        for topic in {topic for each in unknown for topic in each.args}:
            with contextlib.suppress(ConfigError):  # without the right to ask
                if await (await self._streams()).find(topic) is not None:
                    raise ConnectionLost(f"the stream of {topic!r} has no leader at the moment")

    def _doubt(self, messages: Sequence[Message]) -> None:
        if len(self._doubtful) > 100_000:
            self._doubtful.clear()
        self._doubtful.update((message.topic, message.id) for message in messages)

    def _was_ours(self, message: Message) -> bool:
        """Whether the stream has it from us: the answer to an earlier try was lost."""
        known = (message.topic, message.id)
        doubtful = known in self._doubtful
        self._doubtful.discard(known)
        return doubtful

    async def _again(
        self, connection: Connection, message: Message, sent: Outgoing, stream: str, seq: int
    ) -> Exception | None:
        """A message that the stream has already: if it is the very same, somebody brings it back, and is to succeed."""
        value, headers = sent[1], sent[2] or {}
        try:
            there = (await connection.ask(f"STREAM.MSG.GET.{stream}", seq=seq)).get("message", {})
        except (Refused, NoResponders) as error:
            if isinstance(error, Refused) and error.refusal.err_code == NO_MESSAGE:
                there = None  # it is gone, though its id is remembered
            else:
                return None
        if there is not None and not _same(there, value, headers):
            return None  # another one of the same id, which the stream keeps once
        fresh = raw_headers(message, {}, fresh_id())
        [came] = await connection.exchange([(message.topic, value, fresh)])
        return await self._judge(connection, message, sent, came)

    # --- receiving

    async def subscribe(self, subscription: Subscription) -> "NATSReceiver":
        """Join the group, or make one that vanishes with us."""
        topic, group = subscription.topic, subscription.group
        check_topic(topic)
        connection = await self._connected()
        streams = Streams(connection, self._settings.options)
        if subscription.create:
            start = self._past.places.get((topic, group), subscription.start)
            stream, info = await streams.join(topic, group, start, ephemeral=subscription.ephemeral)
        elif subscription.ephemeral:
            stream, info = await streams.join_existing(topic, group)
        else:
            stream, info = await streams.existing(topic, group)
        receiver = NATSReceiver(connection, self._settings, subscription, stream, info, self._past)
        await receiver.begin()
        return receiver

    async def examine(self, question: "Question") -> "Sequence[Finding]":
        """What `things-kit doctor` has to say of the server."""
        from things_kit.brokers.nats.doctor import examine  # noqa: PLC0415 - nobody else needs it

        return await examine(await self._connected(), self._settings, question)


def _impossible(topics: Iterable[str]) -> dict[str, PublishError]:
    """Why these topics cannot be, for those that cannot."""
    refused: dict[str, PublishError] = {}
    for topic in topics:
        try:
            check_topic(topic)
        except ConfigError as error:
            refused[topic] = PublishError(str(error))
    return refused


def _same(there: Mapping[str, Any], value: bytes, headers: dict[str, str]) -> bool:
    """Whether a stored message is the one that was sent: of the same microsecond, and the same value."""
    stored = b64decode(there.get("hdrs", ""))
    return f"{TIME}: {headers[TIME]}\r\n".encode() in stored and b64decode(there.get("data", "")) == value
