"""What the tests of NATS share: another client, and a topic that is gone afterwards."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

pytest.importorskip("nats")

from nats.aio.client import Client
from nats.js import JetStreamContext

import nats
from things_kit import Broker
from things_kit.testing.servers.nats import NATSServer


@pytest.fixture
async def client(nats_server: NATSServer) -> AsyncIterator[Client]:
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


@pytest.fixture
def stream(client: Client) -> JetStreamContext:
    return client.jetstream()


@pytest.fixture
async def topic(broker: Broker) -> AsyncIterator[str]:
    name = f"orders-{uuid4().hex[:10]}"
    yield name
    await broker.remove(name)
    await broker.remove(f"{name}-dlq")
