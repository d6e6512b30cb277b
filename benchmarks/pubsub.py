"""Google Pub/Sub: the driver against the official client doing the same batch calls on asyncio, side by side on one server.

The server is a stand-in for the service, in a process of its own, and bounds the absolute figures.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from typing import Any

from benchmarks.common import consume, messages
from benchmarks.result import Consumed, Result, Stopwatch, rate
from benchmarks.rounds import Rates, name, not_measured, running
from things_kit import Message, connect
from things_kit.engine.broker import Broker
from things_kit.testing.servers.process import ServerUnavailable
from things_kit.testing.servers.pubsub import PubSubServer

COUNT = 150_000
BATCH = 1000
CHUNK = 10_000
RUNS = 5
PROJECT = "projects/things-kit"


class Raw:
    """The official client alone, as its documentation uses it."""

    def __init__(self, endpoint: str) -> None:
        services = "google.pubsub_v1.services"
        self.types: Any = import_module("google.pubsub_v1").types
        client: Any = import_module("google.pubsub_v1")
        self._channel: Any = import_module("grpc").aio.insecure_channel(
            endpoint, options=[("grpc.max_receive_message_length", -1)]
        )
        publishing: Any = import_module(f"{services}.publisher.transports").PublisherGrpcAsyncIOTransport
        receiving: Any = import_module(f"{services}.subscriber.transports").SubscriberGrpcAsyncIOTransport
        self.publisher = client.PublisherAsyncClient(transport=publishing(channel=self._channel))
        self.subscriber = client.SubscriberAsyncClient(transport=receiving(channel=self._channel))

    async def close(self) -> None:
        await self._channel.close()

    async def publish(self, topic: str, rows: list[Message]) -> None:
        """For each ten thousand a request for each key, as the service takes no other; fifty at once."""
        for start in range(0, len(rows), CHUNK):
            keys: dict[bytes, list[tuple[int, Message]]] = {}
            for number, row in enumerate(rows[start : start + CHUNK], start):
                keys.setdefault(row.key or b"", []).append((number, row))
            waiting = iter(keys.values())
            await asyncio.gather(*(self._publish(topic, waiting) for _ in range(50)))

    async def _publish(self, topic: str, waiting: Iterator[list[tuple[int, Message]]]) -> None:
        for batch in waiting:
            packed = [
                self.types.PubsubMessage(
                    data=row.value,
                    ordering_key=(row.key or b"").decode(),
                    attributes={**row.headers, "id": str(number), "time": "2026-11-23T18:40:07.369139+00:00"},
                )
                for number, row in batch
            ]
            await self.publisher.publish(topic=f"{PROJECT}/topics/{topic}", messages=packed)

    async def consume(self, subscription: str, count: int) -> Consumed:
        """One acknowledgement for each response of the stream; every field is read."""
        watch = Stopwatch()
        path, ended = f"{PROJECT}/subscriptions/{subscription}", asyncio.Event()

        async def requests() -> AsyncIterator[Any]:
            yield self.types.StreamingPullRequest(
                subscription=path, stream_ack_deadline_seconds=60, max_outstanding_messages=BATCH
            )
            await ended.wait()

        seen = 0
        async for response in await self.subscriber.streaming_pull(requests=requests()):
            watch.first()
            ack_ids = []
            for each in response.received_messages:
                message = each.message
                _ = message.data, message.ordering_key, dict(message.attributes), message.message_id
                ack_ids.append(each.ack_id)
            await self.subscriber.acknowledge(subscription=path, ack_ids=ack_ids)
            seen += len(ack_ids)
            if seen == count:
                ended.set()
        return watch.consumed(seen)


async def measure(broker: Broker, raw: Raw, rates: Rates) -> None:
    """One round: what is compared runs next to each other, as the machine may do other work meanwhile."""
    topic, raw_topic = name("bench"), name("raw")
    rows, producer = messages(COUNT, topic), broker.producer()
    await broker.declare(topic, groups=["bench"])
    await broker.declare(raw_topic, groups=["bench"])
    rates.raw_published.append(await rate(COUNT, lambda: raw.publish(raw_topic, rows)))
    rates.published.append(await rate(COUNT, lambda: producer.publish_batch(rows)))
    rates.add(
        await raw.consume(f"{raw_topic}+bench", COUNT),
        await consume(broker, COUNT, topic=topic, group="bench"),
    )
    await broker.remove(topic)
    await broker.remove(raw_topic)


async def run() -> list[Result]:
    """Several rounds on one server; a row that says why where there can be none."""
    rates = Rates()
    try:
        async with running(PubSubServer) as server, connect(server.url) as broker:
            raw = Raw(server.endpoint)
            for _ in range(RUNS):
                await measure(broker, raw, rates)
            await raw.close()
    except (ModuleNotFoundError, ServerUnavailable) as reason:
        return not_measured("pubsub", reason)
    return rates.rows(
        "pubsub",
        "consume at least once, key order, concurrency 8, against a raw stream",
        "publish_batch, against raw publish requests, one for each key of 10,000 messages",
        bounds=(0.85, 0.85),
        notes=", raw as documented, through the client's wrappers; a stand-in for the service bounds both",
    )
