"""The inbox for replies: a queue that outlives its connection."""

import asyncio
from uuid import uuid4

from things_kit import Broker, Message, connect
from things_kit.engine.collected import collect
from things_kit.engine.driver import Subscription
from things_kit.engine.naming import REPLIES
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.relay import Relay


async def test_an_inbox_is_made_with_its_queue_or_not_at_all(
    rabbitmq: RabbitMQServer, broker: Broker
) -> None:
    """An exchange alone would be left behind for ever by a process that is killed before it has a queue."""
    name, driver = f"{REPLIES}ffffffff-{uuid4().hex[:10]}", broker.transmission.driver
    async with connect(rabbitmq.url) as other:
        await driver.declare(name, ())
        assert not await other.transmission.has_topic(name)
        reading = await collect(driver, Subscription(topic=name, group="replies", ephemeral=True))
        assert await other.transmission.has_topic(name)
        await reading.close()
        await driver.remove(name)
        assert not await other.transmission.has_topic(name)


async def test_who_may_declare_nothing_else_has_an_inbox(
    rabbitmq: RabbitMQServer, broker: Broker, topic: str
) -> None:
    async def answer(message: Message) -> bytes:
        return message.value

    async with (
        broker.consumer(topic, group="g", handler=answer),
        connect(f"{rabbitmq.url}?declare=false") as requester,
    ):
        assert (await requester.request(Message(topic, b"x"), timeout=60)).value == b"x"


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
