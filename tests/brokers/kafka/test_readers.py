"""What groups have committed, asked of a coordinator that is none, or not yet, as those that have just come back."""

import ctypes
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from things_kit import Broker, ConfigError, connect
from things_kit.brokers.kafka import admin, readers
from things_kit.brokers.kafka.admin import Admin
from things_kit.brokers.kafka.options import Settings
from things_kit.brokers.kafka.readers import GroupReaders
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.url import BrokerURL
from things_kit.testing.conformance.waiting import eventually

OFFSET_FETCH, FIND_COORDINATOR = 9, 10
"""Their numbers in Kafka's protocol."""


class MockCluster:
    """librdkafka's own, for a topic `t` with three messages, of which the group `g` has handled one."""

    def __init__(self) -> None:
        self._broker = Producer({"test.mock.num.brokers": 1})
        broker = next(iter(self._broker.list_topics(timeout=10).brokers.values()))
        self.address = f"{broker.host}:{broker.port}"
        producer = Producer({"bootstrap.servers": self.address})
        for _ in range(3):
            producer.produce("t", b"x", partition=0)
        assert not producer.flush(10)
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "g"})
        consumer.commit(offsets=[TopicPartition("t", 0, 1)], asynchronous=False)
        consumer.close()
        # The client does not offer what its library can do with a mock cluster
        self._library = ctypes.CDLL(_library())
        self._library.rd_kafka_handle_mock_cluster.restype = ctypes.c_void_p
        handle = ctypes.c_void_p.from_address(id(self._broker) + object.__basicsize__)
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_handle_mock_cluster(handle))
        self._library.rd_kafka_mock_set_controller_id(self._cluster, ctypes.c_int32(broker.id))

    def will_say(self, request: int, *codes: int) -> None:
        """Answer so many requests of a kind with errors."""
        errors = (ctypes.c_int * len(codes))(*codes)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(request), ctypes.c_size_t(len(codes)), errors
        )


def _library() -> str:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the client's library is looked for as Linux tells it")
    return next(line.split()[-1] for line in maps.read_text().splitlines() if "librdkafka" in line)


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    yield MockCluster()  # noqa: PT022 - it lives as long as its first client


@pytest.fixture
async def broker(cluster: MockCluster) -> AsyncIterator[Broker]:
    async with connect(f"kafka://{cluster.address}") as opened:
        yield opened


@pytest.fixture
async def asked(cluster: MockCluster) -> AsyncIterator[GroupReaders]:
    found = GroupReaders(Settings.from_url(BrokerURL.parse(f"kafka://{cluster.address}")))
    yield found
    await found.close()


async def test_offsets_are_asked_for_once_the_client_knows_who_leads_the_topic(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it had to look for leaders while metadata came, librdkafka ended the process by a segmentation fault."""
    asked: list[str] = []

    class Watched:
        def __init__(self, *config: Any, **more: Any) -> None:
            self._client = AdminClient(*config, **more)

        def __getattr__(self, name: str) -> Any:
            if name != "poll":
                asked.append(name)
            return getattr(self._client, name)

    monkeypatch.setattr(admin, "AdminClient", Watched)
    here = Admin(Settings.from_url(BrokerURL.parse(f"kafka://{cluster.address}")))
    here.open()
    assert await here.ends("t", [0]) == {0: 3}
    await here.ends("t", [0])
    await here.close()
    here.open()
    with pytest.raises(ConfigError, match="deleting"):  # this cluster cannot, but was asked
        await here.trim("t", {0: 1})
    await here.close()
    assert asked == ["describe_topics", "list_offsets", "list_offsets", "describe_topics", "delete_records"]


@pytest.mark.parametrize(
    "code", [KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS], ids=["not", "not yet"]
)
async def test_the_lag_is_told_once_a_coordinator_that_was_none_is_one(
    cluster: MockCluster, broker: Broker, code: int
) -> None:
    """librdkafka's admin client ended the process by a segmentation fault here."""
    cluster.will_say(OFFSET_FETCH, code, code)
    assert await broker.lag("t", "g") == 2
    assert await broker.lag("t", "another") == 3


async def test_a_group_that_is_refused_is_said_at_once(
    cluster: MockCluster, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "ANSWER", 60.0)
    cluster.will_say(FIND_COORDINATOR, *[KafkaError.GROUP_AUTHORIZATION_FAILED] * 50)
    with pytest.raises(ConfigError, match="needs an ACL"):
        await broker.lag("t", "g")


async def test_a_coordinator_that_is_not_found_in_time_is_an_outage_and_asked_anew(
    cluster: MockCluster, asked: GroupReaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = [TopicPartition("t", 0)]
    with monkeypatch.context() as hasty:
        hasty.setattr(readers, "ANSWER", 0.1)
        hasty.setattr(readers, "LOOK", 0.05)
        cluster.will_say(FIND_COORDINATOR, *[KafkaError.COORDINATOR_NOT_AVAILABLE] * 500)
        with pytest.raises(ConnectionLost, match="places of the group 'g'"):
            await asked.committed("g", place)
    await eventually(lambda: not asked._readers, 20)


class WatchedConsumer(Consumer):
    """One of which can be told whether it is still there."""


async def test_a_consumer_that_asks_is_kept_for_the_next_question_and_ends_soon_after_the_last(
    asked: GroupReaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "Consumer", WatchedConsumer)
    monkeypatch.setattr(readers, "KEPT", 60.0)
    clients: list[Any] = []
    for group in ("a", "b", "a"):
        assert await asked.committed(group, [TopicPartition("t", 0)]) == []
        clients.append(weakref.ref(asked._readers[group]._consumers[0]))
    assert clients[0]() is clients[2]()
    monkeypatch.setattr(readers, "KEPT", 0.01)
    await asked.committed("a", [TopicPartition("t", 0)])
    await eventually(lambda: clients[0]() is None, 20)
    assert list(asked._readers) == ["b"]
    await asked.close()
    await eventually(lambda: clients[1]() is None, 20)
