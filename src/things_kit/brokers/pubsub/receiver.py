"""Receiving: a stream that brings messages, and calls that settle them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

from google.api_core import exceptions, grpc_helpers_async
from google.pubsub_v1 import types

from things_kit.brokers.pubsub.admin import Admin
from things_kit.brokers.pubsub.connection import BRIEFLY, Connection
from things_kit.brokers.pubsub.errors import AWAY, ERRORS, SETTLING, failures
from things_kit.brokers.pubsub.options import Settings
from things_kit.brokers.pubsub.stream import LATE, Stream
from things_kit.brokers.pubsub.wire import unpack
from things_kit.engine.backoff import Backoff
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.engine.wait_topics import lease_for
from things_kit.messaging.errors import ConfigError

ACK_IDS: Final = 2500
"""The most of them in a request, as in Google's own client: 512 KiB are allowed."""

BYTES: Final = 100 * 1024 * 1024
"""Of messages that the service hands out before some are settled, as in Google's own client."""

FAREWELL: Final = 0.7
"""Seconds for what is on its way when we leave, and for giving it back."""

SHORT: Final = 1.0
"""A stream that lived no longer than that, and brought nothing, is no sign that the service is there."""

ACKNOWLEDGE_REQUEST: Final[Any] = types.AcknowledgeRequest.pb()
WRAPPED: Final[Any] = grpc_helpers_async.wrap_errors
MODIFY_REQUEST: Final[Any] = types.ModifyAckDeadlineRequest.pb()


class PubSubReceiver:
    """A stream, and what it brought and was not settled yet. A delivery's token is the message's id at the service.

    A stream has one credit for as long as it lasts, so another credit is another stream. What is given back would come
    straight back over our own stream, so that is ended first.
    """

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        admin: Admin,
        subscription: Subscription,
        exactly_once: bool,
    ) -> None:
        self.topic = subscription.topic
        self._connection = connection
        self._patience = settings.patience
        self._lease = int(lease_for(subscription.topic, settings.options.lease))
        self._admin = admin
        self._subscription = subscription
        self._path = admin.subscription_path(subscription.topic, subscription.group)
        self._exactly_once = exactly_once
        self._inbox = subscription.inbox
        self._name = f"{subscription.topic} as {subscription.group}"
        self._routing = (("x-goog-request-params", f"subscription={self._path}"),)
        # By which the service knows us again when a stream follows another
        self._client_id = uuid4().hex
        self._held: dict[
            str, str
        ] = {}  # ack ids: one that comes again while it is still held here has another
        self._window = 0
        self._stream = Stream()
        self._reading: asyncio.Task[None] | None = None
        self._answered = False
        self._quiet = False
        self._giving_back = False
        self._failure: Exception | None = None
        self._looking: asyncio.Task[None] | None = None

    # --- receiving

    def credit(self, window: int) -> None:
        """End the stream, and open another that the service sends no more than this; 0: none."""
        if window == self._window or self._quiet:
            return
        self._window = window
        self._stream.end()
        self._begin()

    @property
    def _wanted(self) -> bool:
        return self._window > 0 and not self._quiet and not self._giving_back

    def _begin(self) -> None:
        """Read, if there is anything to read for."""
        if self._reading is None and self._wanted and self._failure is None:
            self._reading = asyncio.create_task(self._read(), name=f"{self._name} stream")

    async def _read(self) -> None:
        try:
            await self._read_streams()
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine has to know
            self._failure = error
            self._inbox.fail(error)
        finally:
            self._reading = None

    async def _read_streams(self) -> None:
        """Read one stream after the other: the service closes each after a while."""
        backoff, loop = Backoff(), asyncio.get_running_loop()
        while self._wanted:
            began, self._answered = loop.time(), False
            self._stream = stream = Stream()
            error: Exception | None = None
            try:
                with self._connection.streams.waiting():
                    await self._read_stream(stream)
            except Exception as raised:  # noqa: BLE001 - the table knows it, or takes it for an outage
                error = raised
            if stream.ending:
                continue
            if error is not None and not isinstance(error, (*AWAY, ConnectionLost)):
                raise SETTLING.translate(error, f"receiving {self._name}")
            if not self._answered and loop.time() - began < SHORT:
                ended = error or ConnectionLost(f"receiving {self._name}: the service ended the stream")
                raise ERRORS.translate(ended, f"receiving {self._name}")
            await backoff.wait()

    async def _read_stream(self, stream: Stream) -> None:
        channel = self._connection.streams
        async with stream.lasting():
            responses = await channel.subscriber.streaming_pull(
                requests=self._requests(stream), retry=None, timeout=None, metadata=self._routing
            )
            async for response in responses:
                channel.hear()
                received: Any = types.StreamingPullResponse.pb(response).received_messages
                if self._exactly_once:
                    received = await self._still_ours(received)
                self._take(received)

    async def _requests(self, stream: Stream) -> AsyncIterator[types.StreamingPullRequest]:
        yield types.StreamingPullRequest(
            subscription=self._path,
            stream_ack_deadline_seconds=self._lease,
            max_outstanding_messages=self._window,
            max_outstanding_bytes=BYTES,
            client_id=self._client_id,
        )
        await stream.over()

    def _take(self, received: Iterable[Any]) -> None:
        held, topic = self._held, self.topic
        self._answered = True
        deliveries = []
        for each in received:
            message = each.message
            token = message.message_id
            if token not in held:  # else it is being handled, or waits here: once is enough
                deliveries.append(Delivery(unpack(topic, message, each.delivery_attempt), token))
            held[token] = each.ack_id
        self._inbox.put(deliveries)  # what it refuses goes back with all else when this is closed

    async def _still_ours(self, received: Iterable[Any]) -> list[Any]:
        """Under exactly-once delivery what may have expired on its way counts only if its lease can be extended."""
        by_id = {each.ack_id: each for each in received}
        gone = await self._modify(list(by_id), self._lease)
        return [each for ack_id, each in by_id.items() if ack_id not in gone]

    # --- settling

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Acknowledge in one call; what is released goes back at once."""
        if acknowledged:
            tokens = [delivery.token for delivery in acknowledged]
            await self._acknowledge(tokens)
            for token in tokens:
                self._held.pop(token, None)
        if released:
            self._giving_back = True  # what came after it in its key must not come now
            try:
                await self._end_stream(LATE)
                await self._give_back([release.delivery.token for release in released])
            finally:
                self._giving_back = False
                self._begin()

    async def _acknowledge(self, tokens: Sequence[str]) -> None:
        """Until the service has confirmed all that are still ours."""
        backoff, loop = Backoff(), asyncio.get_running_loop()
        ends = loop.time() + self._lease
        while tokens:
            sent = [self._held[token] for token in tokens]
            failed = await self._call(self._ask_acknowledge, sent)
            tokens = [
                token
                for token, ack_id in zip(tokens, sent, strict=True)
                if self._held[token] != ack_id or failed.get(ack_id, "").startswith("TRANSIENT")
            ]
            if failed and tokens:
                if loop.time() > ends:
                    raise ConnectionLost(f"acknowledging {self._name}: the service confirms it not")
                await backoff.wait()

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Extend these."""
        await self._modify([self._held[delivery.token] for delivery in deliveries], self._lease)

    async def _give_back(self, tokens: Sequence[str]) -> None:
        await self._modify([self._held.pop(token) for token in tokens], 0)

    async def _modify(self, ack_ids: Sequence[str], seconds: int) -> Mapping[str, str]:
        async def ask(part: Sequence[str]) -> None:
            request = MODIFY_REQUEST(subscription=self._path, ack_ids=part, ack_deadline_seconds=seconds)
            await self._connection.subscriber.modify_ack_deadline(
                types.ModifyAckDeadlineRequest.wrap(request), retry=BRIEFLY, timeout=self._patience
            )

        return await self._call(ask, ack_ids)

    async def _ask_acknowledge(self, ack_ids: Sequence[str]) -> None:
        request = ACKNOWLEDGE_REQUEST(subscription=self._path, ack_ids=ack_ids)
        await self._connection.subscriber.acknowledge(
            types.AcknowledgeRequest.wrap(request), retry=BRIEFLY, timeout=self._patience
        )

    async def _call(
        self, ask: Callable[[Sequence[str]], Awaitable[None]], ack_ids: Sequence[str]
    ) -> Mapping[str, str]:
        """Ask in as many requests as it takes; returns why some ack ids were refused. Raises ConnectionLost."""
        failed: dict[str, str] = {}
        for start in range(0, len(ack_ids), ACK_IDS):
            try:
                with self._connection.during(f"settling {self._name}", through=(exceptions.GoogleAPIError,)):
                    await ask(ack_ids[start : start + ACK_IDS])
            except (exceptions.GoogleAPIError, ConnectionLost) as error:
                why = failures(error)
                if not why:
                    self._failure = SETTLING.translate(error, f"settling {self._name}")
                    raise self._failure from error
                failed.update(why)
        return failed

    # --- whether there should be more

    async def overdue(self) -> int | None:
        """Whether a message is there that the stream did not bring: the API tells no number, but hands it out.

        Raises:
            ConnectionLost: The topic was deleted, and left the subscription behind; subscribing makes both anew.
        """
        await self._check_topic()
        return 0 if self._held else await self._pulled()

    async def _check_topic(self) -> None:
        subscribed = self._subscription
        if self._held or not subscribed.create:
            return
        if await self._admin.is_left(subscribed.topic, subscribed.group) and not self._held:
            raise ConnectionLost(f"receiving {self._name}: the topic was deleted")

    async def _pulled(self) -> int:
        """What a call finds that waits for nothing, and gives back at once."""
        pull = WRAPPED(
            self._connection.subscriber.transport.pull
        )  # the client's own warns of asking like this
        request = types.PullRequest(subscription=self._path, max_messages=1, return_immediately=True)
        with self._connection.during(f"looking for messages of {self._name}"):
            pulled = await pull(request, timeout=self._patience, metadata=self._routing)
        found = [each.ack_id for each in pulled.received_messages]
        await self._modify(found, 0)
        return len(found)

    def look(self) -> None:
        """The topic is made anew by this process: see at once whether it is the one that we are subscribed to."""
        if not self._quiet and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look(), name=f"{self._name} look")

    async def _look(self) -> None:
        try:
            await self._check_topic()
        except ConnectionLost as error:
            self._inbox.fail(error)

    # --- ending

    async def quiesce(self) -> None:
        """End the stream, and read what was on its way."""
        self._quiet = True
        await self._end_stream(FAREWELL)

    async def _end_stream(self, within: float) -> None:
        self._stream.end()
        reading = self._reading
        if reading is None:
            return
        try:
            await asyncio.wait({reading}, timeout=within)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def close(self) -> None:
        """Give back what was not settled; what the service cannot be told it finds out by itself."""
        away = self._failure is not None  # then the engine is back soon, and what comes meanwhile is kept
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        with contextlib.suppress(ConnectionLost, ConfigError, TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await self.quiesce()
                await self._give_back(list(self._held))
        if self._subscription.ephemeral and not away:
            with contextlib.suppress(ConnectionLost, ConfigError, TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    await self._admin.remove_subscription(self._path)
