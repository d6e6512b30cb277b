"""A server, a broker on it, and a topic of the test's own."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

pytest.importorskip("pika")

from things_kit import Broker, connect
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.rabbitmq import RabbitMQServer

rabbitmq = shared(RabbitMQServer, "rabbitmq")


@pytest.fixture
async def broker(rabbitmq: RabbitMQServer) -> AsyncIterator[Broker]:
    async with connect(rabbitmq.url) as opened:
        yield opened


@pytest.fixture
async def topic(broker: Broker) -> AsyncIterator[str]:
    name = f"orders-{uuid4().hex[:10]}"
    yield name
    for each in (name, f"{name}-dlq"):
        await broker.remove(each)
