"""Where a member goes on, as the broker says while partitions are assigned to it."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from things_kit.brokers.kafka.places import Beginning, Places
from things_kit.engine.driver import ConnectionLost


@pytest.fixture
def mock_cluster() -> Iterator[str]:
    """librdkafka's own, for a topic `t` with one message."""
    cluster = Producer({"test.mock.num.brokers": 1})
    broker = next(iter(cluster.list_topics(timeout=10).brokers.values()))
    address = f"{broker.host}:{broker.port}"
    producer = Producer({"bootstrap.servers": address})
    producer.produce("t", b"x")
    assert not producer.flush(10)
    yield address  # noqa: PT022 - the cluster lives as long as its producer


class Unanswered:
    """A client whose question is not answered in time."""

    def committed(self, _partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def test_a_broker_that_does_not_say_where_a_group_is_is_away(mock_cluster: str) -> None:
    """A soak found it: out of a callback the client lets go what no `except Exception` catches, and the thread ended unseen."""
    found = Places("t", Beginning("id"))
    settings: dict[str, Any] = {"bootstrap.servers": mock_cluster, "group.id": "g"}
    consumer = Consumer({**settings, "partition.assignment.strategy": "cooperative-sticky"})

    def begin(_client: Consumer, partitions: list[TopicPartition]) -> None:
        unanswered: Any = Unanswered()
        found.begin(unanswered, partitions)

    consumer.subscribe(["t"], on_assign=begin)
    with pytest.raises(ConnectionLost, match="asking where the group is"):
        consume_for(consumer, seconds=90)  # to be let into a group takes long on a busy machine
    consumer.close()


def consume_for(consumer: Consumer, seconds: int) -> None:
    for _ in range(10 * seconds):
        consumer.consume(1, 0.1)
