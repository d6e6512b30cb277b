"""A real Apache Kafka keeps every promise: shared by the tests, and one of its own for those that take it away."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import Consumer, Producer, TopicPartition

from things_kit.testing.conformance import ConformanceSuite, OperationsSuite, SurvivalSuite, Target
from things_kit.testing.conformance.base import Suite
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.kafka import KafkaServer

SHORT_SESSIONS = "?session_timeout=3"
"""So that the partitions of a killed process go to others within the patience of the suite."""

kafka = shared(KafkaServer, "kafka")
own_kafka = own(KafkaServer)


class Foreign:
    """Another client of Kafka: librdkafka alone."""

    def __init__(self, server: KafkaServer) -> None:
        self._server = server

    async def publish(self, topic: str, key: bytes | None, value: bytes, headers: Mapping[str, str]) -> None:
        producer = Producer({"bootstrap.servers": self._server.brokers})
        producer.produce(topic, value, key, headers=dict(headers))
        await asyncio.to_thread(producer.flush, 10)

    async def read(self, topic: str) -> Sequence[tuple[bytes | None, bytes, dict[str, str]]]:
        return await asyncio.to_thread(self._read, topic)

    def _read(self, topic: str) -> list[Any]:
        consumer = Consumer({"bootstrap.servers": self._server.brokers, "group.id": uuid4().hex})
        records: list[Any] = []
        try:
            partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            ends = {
                n: consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=10)[1] for n in partitions
            }
            consumer.assign([TopicPartition(topic, n, 0) for n in partitions])
            while len(records) < sum(ends.values()):
                records += consumer.consume(100, 0.1)
        finally:
            consumer.close()
        return [(m.key(), m.value(), {n: v.decode() for n, v in m.headers() or ()}) for m in records]


class TestKafka(ConformanceSuite):
    @pytest.fixture
    def target(self, kafka: KafkaServer) -> Target:
        foreign = Foreign(kafka)
        return Target(
            url=kafka.url + SHORT_SESSIONS,
            size_options={"max_message_bytes": "4096"},
            absent="kafka://127.0.0.1:1",
            foreign_publish=foreign.publish,
            foreign_read=foreign.read,
        )


class TestKafkaThatGoesAway(Suite):
    """What the suite has about outages, on a server of its own: standing still, and killed."""

    @pytest.fixture(params=["paused", "killed"])
    async def target(self, request: pytest.FixtureRequest, own_kafka: KafkaServer) -> AsyncIterator[Target]:
        async def call(action: Any) -> None:
            await asyncio.to_thread(action)

        hooks: dict[str, Any]
        if request.param == "paused":
            hooks = {"pause": lambda: call(own_kafka.pause), "resume": lambda: call(own_kafka.resume)}
        else:
            hooks = {"kill": lambda: call(own_kafka.kill), "restart": lambda: call(own_kafka.start)}
        yield Target(url=f"{own_kafka.url}{SHORT_SESSIONS}&publish_timeout=90", patience=60.0, **hooks)
        own_kafka.resume()
        await call(own_kafka.start)

    test_nothing_is_lost = SurvivalSuite.test_a_broker_that_goes_away_and_returns_loses_nothing
    test_a_consumer_stops = SurvivalSuite.test_a_consumer_stops_while_it_reconnects
    test_publish_waits = OperationsSuite.test_publish_waits_out_an_outage
    test_health = OperationsSuite.test_health_turns_bad_when_the_broker_is_gone_and_good_again
    _ill = OperationsSuite._ill

    test_publish_fails_in_time = OperationsSuite.test_publish_fails_in_time_when_the_outage_lasts
