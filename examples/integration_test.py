"""A test against a real Kafka: `pytest examples/integration_test.py`, or as a program.

The fixture `kafka_container` gives one too; there is such a pair for every broker.
"""

import asyncio

from things_kit import Message, connect
from things_kit.testing import MockHandler, start_kafka_container


async def main(url: str) -> None:
    handler = MockHandler()
    async with connect(url) as broker, broker.consumer("orders", group="integration", handler=handler):
        await broker.producer().publish(Message("orders", b"o-1", key=b"o-1"))
        await handler.handled(1, timeout=60)
    handler.assert_handled(topic="orders", key=b"o-1", value=b"o-1")
    print("handled through Kafka")


if __name__ == "__main__":
    kafka = start_kafka_container()
    try:
        asyncio.run(main(kafka.url))
    finally:
        kafka.terminate()
