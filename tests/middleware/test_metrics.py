"""Figures of what is sent and handled."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint

from tests.engine.scenario import until
from things_kit import Batch, BatchError, Broker, Message, PublishError, RetryPolicy, connect
from things_kit.middleware import circuit_breaker, throttle
from things_kit.middleware.metrics import Metrics
from things_kit.testing import MockHandler

SENT, CONSUMED = "messaging.client.sent.messages", "messaging.client.consumed.messages"
SENDING, PROCESSING = "messaging.client.operation.duration", "messaging.process.duration"


class Figures:
    """A provider whose figures can be looked at."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    def points(self, name: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        if data is None:
            return []
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def counts(self, name: str) -> dict[tuple[str, str | None], float]:
        """How many by topic and type of error."""
        result: dict[tuple[str, str | None], float] = {}
        for point in self.points(name):
            count = point.value if isinstance(point, NumberDataPoint) else point.count
            said = point.attributes
            result[said.get("messaging.destination.name"), said.get("error.type")] = count
        return result


@pytest.fixture
def figures() -> Figures:
    return Figures()


@pytest.fixture
async def broker(figures: Figures) -> AsyncIterator[Broker]:
    async with connect("memory://") as broker:
        broker.instrument(Metrics(figures.provider))
        yield broker


async def test_what_is_sent_and_handled_is_counted_and_timed_by_topic(
    broker: Broker, figures: Figures
) -> None:
    handler = MockHandler()
    async with broker.consumer(["orders", "returns"], group="g", handler=handler):
        await broker.producer().publish(Message("orders", b""))
        await broker.producer().publish_batch([Message("orders", b""), Message("returns", b"")])
        await handler.handled(3)
    assert figures.counts(SENT) == {("orders", None): 2, ("returns", None): 1}
    assert figures.counts(CONSUMED) == {("orders", None): 2, ("returns", None): 1}
    assert figures.counts(SENDING) == {("orders", None): 1, (None, None): 1}
    assert figures.counts(PROCESSING) == {("orders", None): 2, ("returns", None): 1}
    point = figures.points(PROCESSING)[0]
    assert isinstance(point, HistogramDataPoint)
    assert point.explicit_bounds[0] == 0.005
    assert dict(point.attributes or {}) == {
        "messaging.system": "memory",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "g",
        "messaging.destination.name": "orders",
    }


async def test_failures_have_a_type_and_dead_letters_a_topic(broker: Broker, figures: Figures) -> None:
    handler = MockHandler(outcomes=[ValueError(), None])
    async with broker.consumer("orders", group="g", handler=handler, retry=RetryPolicy(attempts=1)):
        await broker.producer().publish(Message("orders", b""))
        await broker.producer().publish(Message("orders", b""))
        await handler.handled(2)
        await until(lambda: ("orders-dlq", None) in figures.counts(SENT))
    assert figures.counts(CONSUMED) == {("orders", "ValueError"): 1, ("orders", None): 1}
    assert figures.counts(PROCESSING) == figures.counts(CONSUMED)


async def test_a_refused_message_of_a_batch_is_counted_apart(broker: Broker, figures: Figures) -> None:
    with pytest.raises(PublishError):
        await broker.producer().publish_batch([Message("t", b""), Message("t", b"", headers={"tk-x": ""})])
    refused = "things_kit.messaging.errors.PublishError"
    assert figures.counts(SENT) == {("t", None): 1, ("t", refused): 1}
    assert figures.counts(SENDING) == {("t", refused): 1}


async def test_of_a_batch_only_what_failed_counts_as_failed(broker: Broker, figures: Figures) -> None:
    async def handle(messages: list[Message]) -> None:
        raise BatchError({0: KeyError("tea")})

    await broker.declare("t", ["g"])
    await broker.producer().publish_batch([Message("t", b"1"), Message("t", b"2"), Message("t", b"3")])
    retry = RetryPolicy(attempts=1)
    async with broker.consumer("t", group="g", handler=handle, batch=Batch(3, 5), retry=retry):
        await until(lambda: ("t-dlq", None) in figures.counts(SENT))
    assert figures.counts(CONSUMED) == {("t", None): 2, ("t", "KeyError"): 1}
    assert figures.counts(PROCESSING) == {("t", "KeyError"): 1}


async def test_what_is_no_message_is_refused_as_ever(broker: Broker, figures: Figures) -> None:
    wrong: Any = "tea"
    with pytest.raises(PublishError, match="takes a Message"):
        await broker.producer().publish(wrong)
    assert figures.counts(SENT) == {}


async def test_what_is_put_off_and_how_middleware_is_are_gauges_while_a_consumer_runs(
    broker: Broker, figures: Figures
) -> None:
    async def fail(_: Message) -> None:
        raise ConnectionError("down")

    breaker = circuit_breaker(failures=2, reset=60)
    limit = throttle(100)
    late = RetryPolicy(
        first=600, limit=600
    )  # so that none that waits for its next attempt is put off as well
    consumer = broker.consumer(
        "orders", group="billing", handler=fail, retry=late, middleware=[limit, breaker]
    )
    async with consumer:
        await broker.producer().publish_batch([Message("orders", b"1"), Message("orders", b"2")])
        await until(lambda: breaker.state == "open")
        (waiting,) = figures.points("things_kit.consumer.put_off")
        assert (waiting.value, waiting.attributes["messaging.consumer.group.name"]) == (1, "billing")
        assert {
            (
                said["things_kit.middleware.name"],
                said["things_kit.middleware.state"],
                said["messaging.system"],
            )
            for said in (point.attributes for point in figures.points("things_kit.consumer.middleware"))
        } == {("throttle", "free", "memory"), ("circuit_breaker", "open", "memory")}
    assert not figures.points("things_kit.consumer.put_off")
    assert not figures.points("things_kit.consumer.middleware")


async def test_two_metrics_of_one_provider_share_its_gauges(
    figures: Figures, caplog: pytest.LogCaptureFixture
) -> None:
    for topic in ("a", "b"):
        async with connect("memory://") as broker:
            broker.instrument(Metrics(figures.provider))
            async with broker.consumer(topic, group="g", handler=MockHandler()):
                assert len(figures.points("things_kit.consumer.put_off")) == 1
    assert "things_kit.consumer" not in caplog.text
