"""The gauge of how far an app's consumers lag behind."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from things_kit import App, BrokerUnavailable, Message, Producer, provide
from things_kit.app.parts import Part
from things_kit.engine.broker import Broker
from things_kit.modules import config, memory, ops, sqlite, telemetry
from things_kit.testing import MockHandler
from things_kit.testing.conformance.waiting import eventually

BROKERS = {"memory": memory, "sqlite": sqlite}
CONFIG = """
memory: {}
sqlite: {path: events.db}
ops: {port: 0}
telemetry: {traces: false, lag_interval: 0.01}
"""


class Gate:
    """A handler that waits until it may go on."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def handle(self, message: Message) -> None:
        await self.open.wait()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    yield reader
    reader.shutdown()


def lags(
    reader: InMemoryMetricReader, name: str = "things_kit.consumer.lag", unit: str = "{message}"
) -> dict[tuple[Any, Any], int | float]:
    """What the gauge says, by topic and group."""
    data = reader.get_metrics_data()
    metrics = [
        metric
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
    ]
    found: dict[tuple[Any, Any], int | float] = {}
    for metric in metrics:
        assert metric.unit == unit
        for point in metric.data.data_points:
            said = dict(point.attributes or {})
            key = said["messaging.destination.name"], said["messaging.consumer.group.name"]
            assert key not in found, "one figure for each group of a topic"
            found[key] = getattr(point, "value")  # noqa: B009 - of one of its three kinds
    return found


def an_app(*parts: Part) -> App:
    return App(config.module, telemetry.module, *parts)


async def publish(app: App, number: int) -> None:
    producer = await app.get(Producer)
    await producer.publish_batch([Message("orders", b"%d" % each) for each in range(number)])


@pytest.mark.parametrize("name", BROKERS)
async def test_the_lag_of_each_group_is_a_gauge(
    folder: Path, reader: InMemoryMetricReader, name: str
) -> None:
    broker = BROKERS[name]
    gate, quick = Gate(), MockHandler()
    app = an_app(
        broker.module, provide(MeterProvider([reader])),
        broker.consume("orders", group="billing", handler=gate),
        broker.consume("orders", group="stock", handler=quick),
        broker.consume("orders", group=None, handler=MockHandler()),  # its group has no name that lasts
    )  # fmt: skip
    async with app:
        await publish(app, 5)
        await eventually(lambda: lags(reader) == {("orders", "billing"): 5, ("orders", "stock"): 0})
        gate.open.set()
        await eventually(lambda: lags(reader) == {("orders", "billing"): 0, ("orders", "stock"): 0})
    assert lags(reader) == {}, "the provider outlives the app, whose figures would be old"


async def test_the_page_for_prometheus_has_it(folder: Path) -> None:
    gate = Gate()
    app = an_app(ops.module, sqlite.module, sqlite.consume("orders", group="billing", handler=gate))
    async with app, httpx.AsyncClient() as client:
        url = f"{(await app.get(ops.OpsServer)).url}/metrics"
        await publish(app, 3)

        async def said() -> bool:
            lines = (await client.get(url)).text.splitlines()
            found = [line for line in lines if line.startswith("things_kit_consumer_lag{")]
            return any(
                'messaging_consumer_group_name="billing"' in line and line.endswith(" 3.0") for line in found
            )

        await eventually(said)
        gate.open.set()


@pytest.mark.parametrize("error", [BrokerUnavailable("it is away"), RuntimeError("a fault")])
async def test_a_lag_that_cannot_be_read_is_no_failure_and_no_figure(
    folder: Path, reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    asked = asyncio.Event()
    ill = False
    real = Broker.lag

    async def lag(self: Broker, topic: str, group: str) -> int | None:
        if not ill:
            return await real(self, topic, group)
        asked.set()
        raise error

    monkeypatch.setattr(Broker, "lag", lag)
    handler = MockHandler()
    app = an_app(
        memory.module, provide(MeterProvider([reader])), memory.consume("orders", group="g", handler=handler)
    )
    async with app:
        await eventually(lambda: lags(reader) == {("orders", "g"): 0})
        ill = True
        await asked.wait()
        await eventually(lambda: lags(reader) == {}, what="nothing that is old")
        await publish(app, 1)
        await handler.handled(1)
        ill = False
        await eventually(lambda: lags(reader) == {("orders", "g"): 0})


@pytest.mark.parametrize("off", ["metrics: false", "lag_interval: null"])
async def test_where_it_is_off_no_broker_is_asked(
    folder: Path, reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    (folder / "config.yaml").write_text(f"memory: {{}}\ntelemetry: {{traces: false, {off}}}\n")
    app = an_app(
        memory.module,
        provide(MeterProvider([reader])),
        memory.consume("orders", group="g", handler=MockHandler()),
    )
    async with app:
        assert "lag" not in {task.get_name() for task in asyncio.all_tasks()}
    assert lags(reader) == {}


async def test_an_app_may_run_twice_with_one_provider(folder: Path, reader: InMemoryMetricReader) -> None:
    provider = MeterProvider([reader])
    for _ in range(2):
        app = an_app(
            memory.module, provide(provider), memory.consume("orders", group="g", handler=MockHandler())
        )
        async with app:
            await eventually(lambda: lags(reader) == {("orders", "g"): 0})
