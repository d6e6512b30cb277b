"""A real Apache Kafka keeps every promise: shared by the tests, and one of its own for those that take it away."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from things_kit.testing.conformance import ConformanceSuite, SurvivalSuite, Target
from things_kit.testing.conformance.halfopen import HalfOpenSuite
from things_kit.testing.conformance.outages import OutageSuite, falling_silent, outage
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.relay import Relay

SHORT_SESSIONS = "?session_timeout=3"
"""So that the partitions of a killed process go to others within the patience of the suite."""

kafka = shared(KafkaServer, "kafka")


class RelayedKafka(KafkaServer):
    """Has one more listener, whose clients are told that they reach it through a relay."""

    port_count = 4

    def __init__(self) -> None:
        super().__init__()
        plain, controller, direct, relayed = self.ports
        self._properties = {
            "listeners": f"PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},RELAYED://127.0.0.1:{direct}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},RELAYED://127.0.0.1:{relayed}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,RELAYED:PLAINTEXT",
        }


own_kafka = own(RelayedKafka)


def end_of(consumer: Consumer, partition: TopicPartition) -> int:
    """The end of a partition: a broker says that it leads one a moment before it does."""
    patience = time.monotonic() + 30
    while True:
        try:
            end: int = consumer.get_watermark_offsets(partition, timeout=10)[1]
        except KafkaException as error:
            if error.args[0].code() != KafkaError.NOT_LEADER_FOR_PARTITION or time.monotonic() > patience:
                raise
            time.sleep(0.1)
        else:
            return end


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

    @property
    def unreadable(self) -> Sequence[Callable[[str], Awaitable[None]]]:
        return [self.publish_bytes_as_headers, self.publish_a_tombstone]

    async def publish_bytes_as_headers(self, topic: str) -> None:
        await self._produce(
            topic, b"x", headers=[("bytes", b"\xff\xfe"), ("null", None), ("bytes", b"twice")]
        )

    async def publish_a_tombstone(self, topic: str) -> None:
        await self._produce(topic, None, b"k")

    async def _produce(self, topic: str, *arguments: Any, **named: Any) -> None:
        producer = Producer({"bootstrap.servers": self._server.brokers})
        producer.produce(topic, *arguments, **named)
        await asyncio.to_thread(producer.flush, 10)

    def _read(self, topic: str) -> list[Any]:
        consumer = Consumer({"bootstrap.servers": self._server.brokers, "group.id": uuid4().hex})
        records: list[Any] = []
        try:
            partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            ends = {n: end_of(consumer, TopicPartition(topic, n)) for n in partitions}
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
            unreadable=foreign.unreadable,
        )


class TestKafkaThatGoesAway(OutageSuite):
    """What the suite has about outages, on a server of its own: standing still, and killed."""

    @pytest.fixture(params=["paused", "killed"])
    async def target(self, request: pytest.FixtureRequest, own_kafka: KafkaServer) -> AsyncIterator[Target]:
        async with outage(
            own_kafka,
            request.param,
            url=f"{own_kafka.url}{SHORT_SESSIONS}&publish_timeout=90",
            patience=60.0,
            outlasts=6.0,
        ) as target:
            yield target


class TestKafkaThroughARelay(HalfOpenSuite):
    """The server stays, the connections to it break, or fall silent."""

    @pytest.fixture
    async def target(self, own_kafka: RelayedKafka) -> AsyncIterator[Target]:
        _, _, direct, relayed = own_kafka.ports
        async with Relay(direct, relayed) as relay:
            yield falling_silent(relay, f"kafka://127.0.0.1:{relayed}{SHORT_SESSIONS}", patience=30.0)

    test_each_once = SurvivalSuite.test_after_a_cut_connection_each_message_is_handled_once
