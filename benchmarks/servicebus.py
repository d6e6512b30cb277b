"""Azure Service Bus: the driver against the client alone doing the same batch calls, side by side on one server.

The server is a stand-in for the service, in a process of its own, and bounds the absolute figures.
"""

import asyncio
import statistics
from importlib import import_module
from typing import Any
from uuid import uuid4

from benchmarks.common import consume, messages
from benchmarks.result import Result, rate
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

    async def consume(self, topic: str, group: str, count: int) -> None:
        """Batches of messages, every field read, each batch completed before the next."""
        seen = 0
        async with self.client.get_subscription_receiver(topic, group, **LINK) as receiver:
            while seen < count:
                batch = await receiver.receive_messages(BATCH, max_wait_time=5)
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


async def measure(broker: Broker, raw: Raw, rates: dict[str, list[float]]) -> None:
    """One round: what is compared runs next to each other, as the machine may do other work meanwhile."""
    topic, raw_topic = f"bench-{uuid4().hex[:8]}", f"raw-{uuid4().hex[:8]}"
    rows, producer = messages(COUNT, topic), broker.producer()
    await broker.declare(topic, groups=["bench"])
    await broker.declare(raw_topic, groups=["bench"])
    rates["raw published"].append(await rate(COUNT, lambda: raw.publish(raw_topic, rows)))
    rates["published"].append(await rate(COUNT, lambda: producer.publish_batch(rows)))
    rates["raw consumed"].append(await rate(COUNT, lambda: raw.consume(raw_topic, "bench", COUNT)))
    rates["consumed"].append(await rate(COUNT, lambda: consume(broker, COUNT, topic=topic, group="bench")))
    await broker.remove(topic)
    await broker.remove(raw_topic)


def compared(rates: dict[str, list[float]]) -> list[Result]:
    """A row for each bound: the median of the rounds' ratios."""
    rows = []
    for name, what in (
        (
            "consumed",
            "servicebus: consume at least once, key order, concurrency 8, against raw receive_messages(250)",
        ),
        ("published", "servicebus: publish_batch, against raw send_messages(list)"),
    ):
        ours, theirs = rates[name], rates[f"raw {name}"]
        ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
        notes = (
            f"{statistics.median(ours):,.0f} and {statistics.median(theirs):,.0f} messages/s, medians of {len(ours)} "
            "rounds; a stand-in for the service bounds both"
        )
        rows.append(Result(what, f"{ratio:.2f} of raw", "at least 0.85", ratio >= 0.85, notes))
    return rows


async def run() -> list[Result]:
    """Several rounds on one server; a row that says why where there can be none."""
    server = ServiceBusServer()
    try:
        await asyncio.to_thread(server.start)
        raw = Raw(server)
        rates: dict[str, list[float]] = {
            name: [] for name in ("raw published", "published", "raw consumed", "consumed")
        }
        async with raw.client, connect(server.url) as broker:
            for _ in range(RUNS):
                await measure(broker, raw, rates)
    except ModuleNotFoundError as error:
        reason = f"{error.name} is not installed: pip install things-kit[servicebus]"
        return [Result("servicebus", "not measured", "", True, reason)]
    except ServerUnavailable as unavailable:
        return [Result("servicebus", "not measured", "", True, str(unavailable))]
    finally:
        server.terminate()
    return compared(rates)
