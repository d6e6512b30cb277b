"""A channel of gRPC that is replaced when it falls silent.

A connection may be half open: a firewall has forgotten it, and neither side is told. gRPC's own keepalive does not serve:
while nobody sends it gives up after two pings, and a server closes a connection whose client pings more often than it
likes, by default every five minutes. So a call is made where somebody waits and nothing has come for a while; any
answer will do.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import grpc
from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport

from things_kit.engine.driver import ConnectionLost

QUIET: Final = 8.0
"""Seconds in which somebody waits and hears nothing until the service is asked for a sign of life."""

ANSWER: Final = 8.0
"""Seconds that it may take for that; together they leave time for what was under way to be sent again within 30."""

PROBE: Final = "/grpc.health.v1.Health/Check"
"""gRPC's own. Pub/Sub does not have it and says so, which is an answer that needs no right and costs nothing."""


class Channel:
    """The clients of one channel, and who waits for the service over it.

    Attributes:
        publisher: What makes calls about topics; another one when the channel was replaced.
        subscriber: The same about subscriptions.
    """

    publisher: PublisherAsyncClient
    subscriber: SubscriberAsyncClient

    def __init__(self, make: Callable[[], grpc.aio.Channel]) -> None:
        self._make = make
        self._waiting = 0
        self._heard = 0.0
        self._watching: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._open()

    def _open(self) -> None:
        self._channel = self._make()
        self.publisher = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=self._channel))
        self.subscriber = SubscriberAsyncClient(
            transport=SubscriberGrpcAsyncIOTransport(channel=self._channel)
        )

    async def close(self) -> None:
        """Close it, with the calls that are under way."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._channel.close()
        await asyncio.gather(*self._closing)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For whatever waits for the service over this channel.

        Raises:
            ConnectionLost: It fell silent, and was replaced meanwhile.
        """
        channel = self._channel
        if not self._waiting:
            self.hear()
        self._waiting += 1
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="things_kit pubsub channel")
        try:
            yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if channel is self._channel or task is None or task.cancelling():
                raise
            raise ConnectionLost(
                f"the connection fell silent: nothing came for {QUIET + ANSWER:g} s"
            ) from error
        finally:
            self._waiting -= 1
        self.hear()

    def hear(self) -> None:
        """Something has come."""
        self._heard = asyncio.get_running_loop().time()

    async def _watch(self) -> None:
        while self._waiting:
            quiet = asyncio.get_running_loop().time() - self._heard
            if quiet < QUIET:
                await asyncio.sleep(QUIET - quiet)
            else:
                await self._probe()

    async def _probe(self) -> None:
        probe = self._channel.unary_unary(PROBE, request_serializer=bytes, response_deserializer=bytes)
        try:
            await probe(b"", timeout=ANSWER)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                closing = asyncio.create_task(self._channel.close(), name="things_kit pubsub silent channel")
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
                self._open()
        self.hear()
