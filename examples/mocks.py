"""Tests of a handler with stand-ins: run them with `pytest examples/mocks.py`, or as a program."""

import asyncio

from things_kit import Message, Producer, RetryPolicy, connect
from things_kit.testing import MockConsumer, MockHandler, MockProducer


class Shipping:
    """What is tested: it says where an order goes."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer

    async def handle(self, message: Message) -> None:
        await self.producer.publish(Message("shipments", message.value, key=message.key))


async def test_a_handler_with_a_mock_producer() -> None:
    producer = MockProducer()
    await Shipping(producer).handle(Message("orders", b"o-1", key=b"o-1"))
    assert [(sent.topic, sent.key) for sent in producer.messages] == [("shipments", b"o-1")]


async def test_a_consumer_with_a_mock_handler() -> None:
    handler = MockHandler(outcomes=[ValueError("not yet"), None])
    async with (
        connect("memory://") as broker,
        broker.consumer("orders", group="test", handler=handler, retry=RetryPolicy(first=0.01)),
    ):
        await broker.producer().publish(Message("orders", b"o-1"))
        await handler.handled(2)
    handler.assert_handled(topic="orders", value=b"o-1", count=2)


async def test_what_starts_consumers_with_a_mock_consumer() -> None:
    consumer = MockConsumer()
    async with consumer:
        assert (consumer.started, consumer.stopped) == (1, 0)
    assert consumer.stopped == 1


async def main() -> None:
    await test_a_handler_with_a_mock_producer()
    await test_a_consumer_with_a_mock_handler()
    await test_what_starts_consumers_with_a_mock_consumer()
    print("all as expected")


if __name__ == "__main__":
    asyncio.run(main())
