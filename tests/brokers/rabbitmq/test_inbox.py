"""The inbox for replies: a queue that outlives its connection."""

import asyncio

from things_kit import Broker, Message, connect
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.relay import Relay


async def test_a_reply_that_a_broken_connection_has_swallowed_comes_over_the_next(
    rabbitmq: RabbitMQServer, broker: Broker, topic: str
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def answer(message: Message) -> bytes:
        asked.set()
        await go_on.wait()
        return message.value

    async with (
        broker.consumer(topic, group="g", handler=answer) as consumer,
        Relay(rabbitmq.ports[0]) as relay,
        connect(f"amqp://guest:guest@127.0.0.1:{relay.port}/") as requester,
    ):
        asking = asyncio.create_task(requester.request(Message(topic, b"x"), timeout=60))
        await asyncio.wait_for(asked.wait(), 30)
        relay.half_open()
        go_on.set()
        await eventually(lambda: consumer.handled == 1, 30)
        await relay.cut()
        assert (await asking).value == b"x"
