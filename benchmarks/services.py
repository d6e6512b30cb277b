"""The clients of services, alone, as `clients` are for servers: what latency is measured against, on stand-ins."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import Any

from benchmarks.clients import GROUP, Arrivals, Send, Together, meanwhile
from benchmarks.pubsub import PROJECT, Raw
from benchmarks.rounds import name
from benchmarks.servicebus import LINK
from things_kit import connect
from things_kit.testing.servers.pubsub import PubSubServer
from things_kit.testing.servers.servicebus import ServiceBusServer
from things_kit.testing.servers.sqs import REGION, SQSServer


@asynccontextmanager
async def sqs(server: SQSServer, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A topic with a queue; one reader that waits for up to ten, and deletes them in one request."""
    session, topic = import_module("aiobotocore.session").get_session(), name("raw")
    where = {
        "region_name": REGION,
        "endpoint_url": server.endpoint,
        "aws_access_key_id": GROUP,
        "aws_secret_access_key": GROUP,
    }
    async with session.create_client("sns", **where) as sns, session.create_client("sqs", **where) as queues:
        arn = (await sns.create_topic(Name=topic))["TopicArn"]
        queue = (await queues.create_queue(QueueName=topic))["QueueUrl"]
        await sns.subscribe(
            TopicArn=arn,
            Protocol="sqs",
            Endpoint=arn.replace(":sns:", ":sqs:"),
            Attributes={"RawMessageDelivery": "true"},
        )

        async def read() -> None:
            while True:
                answer = await queues.receive_message(
                    QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=20
                )
                found = answer.get("Messages", [])
                for each in found:
                    arrivals.came(each["Body"].encode())
                entries = [
                    {"Id": str(number), "ReceiptHandle": each["ReceiptHandle"]}
                    for number, each in enumerate(found)
                ]
                if entries:
                    await queues.delete_message_batch(QueueUrl=queue, Entries=entries)

        async with meanwhile(read()):
            yield lambda value: sns.publish(TopicArn=arn, Message=value.decode())
        await sns.delete_topic(TopicArn=arn)
        await queues.delete_queue(QueueUrl=queue)


@asynccontextmanager
async def pubsub(server: PubSubServer, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A stream, and a request that acknowledges each of its responses."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(connect(server.url))
        raw, topic = Raw(server.endpoint), name("raw")
        stack.push_async_callback(raw.close)
        await broker.declare(topic, [GROUP])
        stack.push_async_callback(broker.remove, topic)
        path, ended = f"{PROJECT}/subscriptions/{topic}+{GROUP}", asyncio.Event()

        async def requests() -> AsyncIterator[Any]:
            yield raw.types.StreamingPullRequest(
                subscription=path, stream_ack_deadline_seconds=60, max_outstanding_messages=1000
            )
            await ended.wait()

        async def read() -> None:
            async for response in await raw.subscriber.streaming_pull(requests=requests()):
                for each in response.received_messages:
                    arrivals.came(each.message.data)
                acknowledged = [each.ack_id for each in response.received_messages]
                await raw.subscriber.acknowledge(subscription=path, ack_ids=acknowledged)

        async def send(values: list[bytes]) -> None:
            packed = [raw.types.PubsubMessage(data=value) for value in values]
            await raw.publisher.publish(topic=f"{PROJECT}/topics/{topic}", messages=packed)

        async with meanwhile(read()):
            yield Together(send).send
        ended.set()


@asynccontextmanager
async def servicebus(server: ServiceBusServer, arrivals: Arrivals) -> AsyncIterator[Send]:
    """A topic with a subscription, and a receiver that is iterated over, which is quicker than its batches here."""
    package, aio = import_module("azure.servicebus"), import_module("azure.servicebus.aio")
    topic = name("raw")
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(connect(server.url))
        await broker.declare(topic, [GROUP])
        stack.push_async_callback(broker.remove, topic)
        client = await stack.enter_async_context(
            aio.ServiceBusClient.from_connection_string(server.connection_string)
        )
        sender = await stack.enter_async_context(client.get_topic_sender(topic, **LINK))
        receiver = await stack.enter_async_context(client.get_subscription_receiver(topic, GROUP, **LINK))

        async def read() -> None:
            async for each in receiver:
                arrivals.came(b"".join(each.body))
                await receiver.complete_message(each)

        async def send(values: list[bytes]) -> None:
            await sender.send_messages([package.ServiceBusMessage(value) for value in values])

        async with meanwhile(read()):
            yield Together(send).send
