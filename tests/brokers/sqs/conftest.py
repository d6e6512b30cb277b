"""A server, a login, a broker on it, and a topic of the test's own."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

pytest.importorskip("aiobotocore")

from things_kit import Broker, connect
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.sqs import SQSServer

sqs = shared(SQSServer, "sqs")


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")


@pytest.fixture
async def broker(sqs: SQSServer, credentials: None) -> AsyncIterator[Broker]:
    async with connect(f"{sqs.url}&grace=0") as broker:
        yield broker


@pytest.fixture
async def topic(broker: Broker) -> AsyncIterator[str]:
    name = f"orders-{uuid4().hex[:10]}"
    yield name
    for each in (name, f"{name}-dlq", f"{name}.fifo", f"{name}-dlq.fifo"):
        await broker.remove(each)
