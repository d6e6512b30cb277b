"""A process that asks and waits until it is killed: `python -m tests.patterns.asking URL TOPIC MILLISECONDS REQUEST...`.

RabbitMQ keeps its inbox for so many milliseconds after its death.
"""

import asyncio
import sys

import pytest

from things_kit import Message, connect

HOUR = 3600.0


async def main(url: str, topic: str, lasts: str, *requests: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if url.startswith("amqp"):
            patch.setattr("things_kit.brokers.rabbitmq.driver.INBOX_LASTS", int(lasts))
        async with connect(url) as broker:
            asked = (Message(topic, each.encode(), key=each.encode()) for each in requests)
            await asyncio.gather(*(broker.request(each, timeout=HOUR) for each in asked))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
