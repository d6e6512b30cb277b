"""Azure Service Bus: the driver against the client alone doing the same batch calls, side by side on one server.

The server is a stand-in for the service, in a process of its own, and bounds the absolute figures.
"""

import asyncio
from importlib import import_module
from typing import Any
from uuid import uuid4

from benchmarks.common import consume, messages
from benchmarks.result import Consumed, Result, Stopwatch, rate
from benchmarks.rounds import Rates, name, not_measured, running
from things_kit import Message, connect
from things_kit.engine.broker import Broker
from things_kit.testing.servers.process import ServerUnavailable
from things_kit.testing.servers.servicebus import ServiceBusServer

COUNT = 4_000
BATCH = 250
AT_ONCE = 100
RUNS = 3
LINK = {"socket_timeout": 0.05}
"""With it the client alone is faster than with its default of 0.2 seconds."""


class Raw:
    """The client alone, as its documentation uses it."""

    def __init__(self, server: ServiceBusServer) -> None:
        self._message: Any = import_module("azure.servicebus").ServiceBusMessage
        client: Any = import_module("azure.servicebus.aio").ServiceBusClient
        self.client = client.from_connection_string(server.connection_string)

    async def publish(self, topic: str, rows: list[Message]) -> None:
        """Lists that fit into a batch; every message has what ours have."""
        async with self.client.get_topic_sender(topic, **LINK) as sender:
            for start in range(0, len(rows), 2 * BATCH):
                await sender.send_messages([self._packed(row) for row in rows[start : start + 2 * BATCH]])

    def _packed(self, row: Message) -> Any:
        properties = {
            **row.headers,
            "key": (row.key or b"").decode(),
            "time": "2026-11-23T18:40:07.369139+00:00",
        }
        return self._message(row.value, application_properties=properties, message_id=uuid4().hex)

    async def consume(self, topic: str, group: str, count: int) -> Consumed:
        """Batches of messages, every field read, each batch completed before the next."""
        watch = Stopwatch()
        seen = 0
        async with self.client.get_subscription_receiver(topic, group, **LINK) as receiver:
            while seen < count:
                batch = await receiver.receive_messages(BATCH, max_wait_time=5)
                if batch:
                    watch.first()
                for each in batch:
                    _ = (
                        b"".join(each.body),
                        dict(each.application_properties),
                        each.message_id,
                        each.delivery_count,
                    )
                for start in range(0, len(batch), AT_ONCE):
                    await asyncio.gather(*map(receiver.complete_message, batch[start : start + AT_ONCE]))
                seen += len(batch)
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
        await raw.consume(raw_topic, "bench", COUNT),
        await consume(broker, COUNT, topic=topic, group="bench"),
    )
    await broker.remove(topic)
    await broker.remove(raw_topic)


async def run() -> list[Result]:
    """Several rounds on one server; a row that says why where there can be none."""
    rates = Rates()
    try:
        async with running(ServiceBusServer) as server:
            raw = Raw(server)
            async with raw.client, connect(server.url) as broker:
                for _ in range(RUNS):
                    await measure(broker, raw, rates)
    except (ModuleNotFoundError, ServerUnavailable) as reason:
        return not_measured("servicebus", reason)
    return rates.rows(
        "servicebus",
        "consume at least once, key order, concurrency 8, against raw receive_messages(250)",
        "publish_batch, against raw send_messages(list)",
        bounds=(0.85, 0.85),
        notes="; a stand-in for the service bounds both",
    )
