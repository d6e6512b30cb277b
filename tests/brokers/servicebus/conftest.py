"""A stand-in for the service, and names that nobody else has."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from things_kit import Broker, connect
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.servicebus import ServiceBusServer

servicebus = shared(ServiceBusServer, "servicebus")
own_servicebus = own(ServiceBusServer)


@pytest.fixture
async def broker(servicebus: ServiceBusServer) -> AsyncIterator[Broker]:
    async with connect(servicebus.url) as broker:
        yield broker


@pytest.fixture
async def topic(broker: Broker) -> AsyncIterator[str]:
    """A topic that is removed afterwards, with its dead letters."""
    name = f"orders-{uuid4().hex[:10]}"
    yield name
    await broker.remove(name)
    await broker.remove(f"{name}-dlq")
