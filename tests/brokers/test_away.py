"""A broker that is not there at the start: the engine says so with the reason, and no driver says it again."""

import asyncio
import contextlib
import logging
import socket

import pytest

from things_kit import BrokerUnavailable, connect
from things_kit.engine import transmission
from things_kit.testing.conformance.waiting import eventually

CLIENTS = {
    "kafka": "confluent_kafka",
    "amqp": "pika",
    "nats": "nats",
    "redis": "redis",
    "postgres": "asyncpg",
    "sqs": "aiobotocore",
}


@pytest.mark.parametrize("scheme", CLIENTS)
async def test_it_is_reported_by_the_engine_alone_with_the_reason(
    scheme: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(CLIENTS[scheme])
    monkeypatch.setattr(transmission, "FIRST_WORD", 0.1)
    monkeypatch.setattr(transmission, "NEXT_WORD", 0.1)  # the first may come before the client has tried
    if scheme == "sqs":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with socket.socket() as closed, caplog.at_level(logging.INFO, "things_kit"):
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        where = f"us-east-1?endpoint=http://{host}&" if scheme == "sqs" else f"{host}?"
        broker = connect(f"{scheme}://{where}publish_timeout=60")
        opening = asyncio.create_task(broker.open())

        async def told() -> bool:
            return "connection refused" in caplog.text.lower()

        await eventually(told, 30, "the reason was logged")
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError, BrokerUnavailable):
            await opening
        await broker.close()
    assert {record.name for record in caplog.records} == {"things_kit.broker"}, caplog.text
