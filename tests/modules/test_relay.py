"""An outbox's relay as a part of an app: it starts and stops with it, and its lag and age are seen."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.modules.test_lag import lags
from things_kit import App, Message, connect, module, provide
from things_kit.modules import config, memory, ops, telemetry
from things_kit.patterns import Outbox
from things_kit.testing.conformance.waiting import eventually

outbox = Outbox()
AGE = "things_kit.consumer.age"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(
        "ops: {port: 0}\ntelemetry: {traces: false, lag_interval: 0.01}\nmemory: {}\n"
    )
    return f"sqlite:///{tmp_path}/app.db"


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    yield reader
    reader.shutdown()


async def commit(source: str, *messages: Message) -> None:
    async with connect(source) as broker:
        await broker.declare("orders")
        with closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as session:
            outbox.publish_batch_sync(session, messages)
            session.commit()


async def test_an_app_relays_as_long_as_it_runs(source: str, caplog: pytest.LogCaptureFixture) -> None:
    await commit(source, Message("orders", b"1"), Message("orders", b"2"))
    async with connect("memory://") as target:
        await target.declare("orders", ["g"])
        relay = outbox.relay(source, target, ["orders"])
        app = App(module("outbox", relay))
        for _ in range(2):  # an app may be started again
            async with app:
                await relay.until_empty()
                assert (await relay.health()).ok
            assert relay.brokers == ()
        assert await target.lag("orders", "g") == 2


async def test_lag_and_age_of_a_relay_are_in_health_and_metrics(
    source: str, reader: InMemoryMetricReader, tmp_path: Path
) -> None:
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    await commit(source, Message("orders", b"much too large", timestamp=long_ago), Message("orders", b"2"))
    target = f"sqlite:///{tmp_path}/target.db?max_message_bytes=8"
    app = App(
        config.module,
        provide(MeterProvider([reader])),
        telemetry.module,
        ops.module,
        memory.module,
        outbox.relay(source, target, ["orders"]),
    )
    async with app, httpx.AsyncClient(timeout=30) as client:
        url = (await app.get(ops.OpsServer)).url

        async def relay() -> dict[str, Any]:
            answer = (await client.get(f"{url}/readyz")).json()
            assert len(answer["brokers"]) == 2
            (found,) = answer["relays"]
            return {**found, "ready": answer["ready"]}

        async with asyncio.timeout(20):  # what was moved is acknowledged at the source a moment later
            while [(found := await relay())[count] for count in ("moved", "held", "lag")] != [1, 1, 1]:
                pass
        assert not found["ready"]
        assert not found["ok"]
        assert "the target refuses 1 of its messages" in found["reason"]
        assert 3600 < found["age"] < 3700
        assert found["topics"] == ["orders"]
        await eventually(lambda: lags(reader) == {("orders", "bridge"): 1})
    assert lags(reader) == {}


async def test_the_age_is_that_of_the_oldest_message_in_hand(
    source: str, reader: InMemoryMetricReader, tmp_path: Path
) -> None:
    await commit(source)
    relay = outbox.relay(source, f"sqlite:///{tmp_path}/target.db", ["orders"])
    app = App(config.module, provide(MeterProvider([reader])), telemetry.module, memory.module, relay)
    async with app:
        await eventually(lambda: lags(reader, AGE, "s") == {("orders", "bridge"): 0})
        with closing(sqlite3.connect(tmp_path / "target.db", isolation_level=None)) as away:
            away.execute("BEGIN IMMEDIATE")
            long_ago = datetime.now(UTC) - timedelta(hours=1)
            await commit(source, Message("orders", b"1", timestamp=long_ago), Message("orders", b"2"))
            await eventually(lambda: 3600 < lags(reader, AGE, "s")["orders", "bridge"] < 3700)
            assert 3600 < (await relay.health()).age < 3700
        await eventually(lambda: lags(reader, AGE, "s") == {("orders", "bridge"): 0})
