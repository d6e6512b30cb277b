"""The driver for SQS and SNS against the client it is built on, both on one emulator, which bounds what is seen.

The raw client sends the same attributes in requests of ten, with as many requests at once as the driver: eight.
"""

import asyncio
import os
from importlib import import_module
from typing import Any
from unittest.mock import patch

from benchmarks.common import consume, messages
from benchmarks.result import Consumed, Result, Stopwatch, rate
from benchmarks.rounds import Rates, name, not_measured, running
from things_kit import Broker, Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.sqs import REGION, SQSServer

COUNT = 10_000
AT_ONCE = 8
TEN = 10
RUNS = 3

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}


# --- the client alone


class Raw:
    """A topic and a queue, made and used by the client alone."""

    def __init__(self, sns: Any, sqs: Any) -> None:
        self._sns = sns
        self._sqs = sqs
        self._topic = ""
        self._queue = ""

    async def declare(self) -> None:
        """A topic, and a queue subscribed to it."""
        topic = name("raw")
        self._topic = (await self._sns.create_topic(Name=topic))["TopicArn"]
        self._queue = (await self._sqs.create_queue(QueueName=topic))["QueueUrl"]
        await self._sns.subscribe(
            TopicArn=self._topic,
            Protocol="sqs",
            Endpoint=self._topic.replace(":sns:", ":sqs:"),
            Attributes={"RawMessageDelivery": "true"},
        )

    async def remove(self) -> None:
        """Delete both."""
        await self._sns.delete_topic(TopicArn=self._topic)
        await self._sqs.delete_queue(QueueUrl=self._queue)

    async def publish(self, rows: list[Message]) -> None:
        """Requests of ten, eight at once."""
        chunks = iter([rows[start : start + TEN] for start in range(0, len(rows), TEN)])

        async def publisher() -> None:
            for chunk in chunks:
                answer = await self._sns.publish_batch(
                    TopicArn=self._topic,
                    PublishBatchRequestEntries=[_entry(*each) for each in enumerate(chunk)],
                )
                assert not answer.get("Failed")

        await asyncio.gather(*(publisher() for _ in range(AT_ONCE)))

    async def consume(self) -> Consumed:
        """Eight pollers, each of which receives ten, reads them and deletes them."""
        watch = Stopwatch()
        seen = 0

        async def poller() -> None:
            nonlocal seen
            while seen < COUNT:
                answer = await self._sqs.receive_message(
                    QueueUrl=self._queue,
                    MaxNumberOfMessages=TEN,
                    MessageAttributeNames=["All"],
                    MessageSystemAttributeNames=["SentTimestamp"],
                )
                found = answer.get("Messages", [])
                seen += len(found)
                if found:
                    watch.first()
                receipts = [
                    {"Id": str(number), "ReceiptHandle": entry["ReceiptHandle"]}
                    for number, entry in enumerate(found)
                    if entry["Body"] and entry["MessageAttributes"]
                ]
                if receipts:
                    await self._sqs.delete_message_batch(QueueUrl=self._queue, Entries=receipts)

        await asyncio.gather(*(poller() for _ in range(AT_ONCE)))
        return watch.consumed(seen)


def _entry(number: int, message: Message) -> dict[str, Any]:
    """With the attributes that the driver's messages have."""
    ours = f'{{"id":"{number:026d}","time":"2026-11-23T12:00:00.123456Z","n":1000,"key":"key-100"}}'
    return {
        "Id": str(number),
        "Message": message.value.decode(),
        "MessageAttributes": {
            "type": {"DataType": "String", "StringValue": "bench"},
            "tk-message": {"DataType": "String", "StringValue": ours},
        },
    }


# --- all of it


async def measure(raw: Raw, broker: Broker, rates: Rates) -> None:
    """One round: what is compared runs next to each other, as the machine may do other work meanwhile."""
    topic = name("bench")
    rows = messages(COUNT, topic)
    await broker.declare(topic, groups=["bench"])
    await raw.declare()
    producer = broker.producer()
    rates.raw_published.append(await rate(COUNT, lambda: raw.publish(rows)))
    rates.published.append(await rate(COUNT, lambda: producer.publish_batch(rows)))
    rates.add(await raw.consume(), await consume(broker, COUNT, topic=topic))
    await broker.remove(topic)
    await broker.remove(f"{topic}-dlq")
    await raw.remove()


async def run() -> list[Result]:
    """Several rounds on one emulator; a row that says why where there can be none."""
    rates = Rates()
    try:
        session = import_module("aiobotocore.session").get_session()
        with patch.dict(os.environ, CREDENTIALS):
            async with running(SQSServer) as server:
                where = {"region_name": REGION, "endpoint_url": server.endpoint}
                async with (
                    session.create_client("sns", **where) as sns,
                    session.create_client("sqs", **where) as sqs,
                    connect(server.url) as broker,
                ):
                    for _ in range(RUNS):
                        await measure(Raw(sns, sqs), broker, rates)
    except (ModuleNotFoundError, ServerUnavailable) as reason:
        return not_measured("sqs", reason)
    return rates.rows(
        "sqs",
        "consume at least once, key order, concurrency 8, against raw receive and delete by ten, 8 at once",
        "publish_batch, against raw publish_batch by ten, 8 at once",
        bounds=(0.85, 0.85),
        notes="; an emulator bounds both",
    )
