"""What `things-kit doctor` finds in a real Kafka, and how settings are judged that one broker cannot have."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("confluent_kafka")
pytest.importorskip("typer")

from confluent_kafka import Consumer, ConsumerGroupState, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from typer.testing import CliRunner

from tests.brokers.kafka.test_secure import SECRET, secure
from things_kit.brokers.kafka import facts as facts_module
from things_kit.brokers.kafka.admin import Admin, Place
from things_kit.brokers.kafka.facts import (
    PROTOCOLS,
    REBALANCING,
    Copies,
    Group,
    add_cluster,
    add_group,
    add_topic,
    facts_of,
)
from things_kit.brokers.kafka.options import Settings
from things_kit.cli.app import app
from things_kit.engine.conclusions import conclude
from things_kit.engine.driver import Capabilities
from things_kit.engine.facts import Facts, Finding, Question
from things_kit.engine.offsets import encode
from things_kit.engine.url import BrokerURL
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.kafka import KafkaServer

PATIENCE = 30.0

kafka = shared(KafkaServer, "kafka")
generous_kafka = own(lambda: KafkaServer(properties={"auto.create.topics.enable": "true"}))

__all__ = ["secure"]  # a fixture


def examined(url: str, question: Question) -> list[Finding]:
    settings = Settings.from_url(BrokerURL.parse(url))

    async def look() -> Facts:
        admin = Admin(settings)
        admin.open()
        try:
            return await facts_of(admin, settings, question)
        finally:
            await admin.close()

    return concluded(asyncio.run(look()), question, settings)


def concluded(facts: Facts, question: Question, settings: Settings) -> list[Finding]:
    capabilities = Capabilities(retained=True, max_message_bytes=settings.options.max_message_bytes)
    return list(conclude(facts, question, capabilities, declares=settings.url.engine.declare))


class Cluster:
    """The shared Kafka, as its own client sees it."""

    def __init__(self, server: KafkaServer) -> None:
        self.server = server
        self.admin: Any = AdminClient({"bootstrap.servers": server.brokers})
        self.topics: list[str] = []

    def topic(self, partitions: int = 1, name: str | None = None, **config: str) -> str:
        """A new topic with settings such as `retention_ms`."""
        name = name or f"orders-{uuid4().hex[:10]}"
        settings = {key.replace("_", "."): value for key, value in config.items()}
        new = NewTopic(name, num_partitions=partitions, replication_factor=1, config=settings)
        self.admin.create_topics([new], operation_timeout=10)[name].result(PATIENCE)
        self.topics.append(name)
        ends = time.monotonic() + PATIENCE
        while not self._is_led(name, partitions):  # the controller has it before the broker knows of it
            assert time.monotonic() < ends, f"{name} was created, but is not there"
        return name

    def _is_led(self, topic: str, partitions: int) -> bool:
        known = self.admin.list_topics(topic, timeout=PATIENCE).topics[topic]
        return len(known.partitions) == partitions and all(p.leader >= 0 for p in known.partitions.values())

    def publish(self, topic: str, count: int) -> None:
        producer = Producer({"bootstrap.servers": self.server.brokers})
        for number in range(count):
            producer.produce(topic, b"%d" % number, b"k", 0)
        assert producer.flush(PATIENCE) == 0

    def consumer(self, group: str, **config: Any) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self.server.brokers,
                "group.id": group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                **{key.replace("_", "."): value for key, value in config.items()},
            }
        )

    def commit(self, group: str, topic: str, offset: int, metadata: str = "") -> None:
        """As a consumer without a membership does."""
        consumer = self.consumer(group)
        consumer.commit(offsets=[TopicPartition(topic, 0, offset, metadata)], asynchronous=False)
        consumer.close()

    def examine(self, query: str = "", **question: Any) -> list[Finding]:
        return examined(self.server.url + query, Question(**question))

    def of_group(self, topic: str, group: str) -> list[tuple[str, str]]:
        findings = self.examine(topic=topic, group=group)
        return [(each.level, each.what) for each in findings if each.subject == f"group {group}"]


@pytest.fixture
def cluster(kafka: KafkaServer) -> Iterator[Cluster]:
    cluster = Cluster(kafka)
    yield cluster
    for future in cluster.admin.delete_topics(cluster.topics).values() if cluster.topics else ():
        future.result(PATIENCE)


@pytest.fixture
def group() -> str:
    return f"billing-{uuid4().hex[:10]}"


def settings(query: str = "") -> Settings:
    return Settings.from_url(BrokerURL.parse(f"kafka://a{query}"))


def about(findings: Sequence[Finding], subject: str) -> list[tuple[str, str]]:
    return [(each.level, each.what) for each in findings if each.subject == subject]


def levels(findings: Any) -> list[str]:
    return [each.level for each in findings]


def polled(consumer: Consumer, until: Callable[[], bool]) -> None:
    """Poll until something is so."""
    for _ in range(300):
        consumer.poll(0.1)
        if until():
            return
    pytest.fail("it did not come to that")


# --- the cluster


def test_a_broker_of_the_url_that_is_down_is_a_warning(cluster: Cluster) -> None:
    findings = examined(f"{cluster.server.url},127.0.0.1:1", Question())
    assert [each.level for each in findings if each.subject == "broker 127.0.0.1:1"] == ["warning"]


def test_topics_that_anybody_creates_are_told(cluster: Cluster) -> None:
    assert about(cluster.examine(), "cluster") == [
        ("ok", "It has 1 broker."),
        ("ok", "It creates topics only where that is asked for."),
    ]


def test_a_broker_that_creates_any_topic_is_a_warning(generous_kafka: KafkaServer) -> None:
    cluster = Cluster(generous_kafka)
    findings = cluster.examine(topic="mispelt")
    _, (level, what) = about(findings, "cluster")
    assert (level, "auto.create.topics.enable" in what) == ("warning", True)
    assert [level for level, _ in about(findings, "topic mispelt")] == ["warning"]
    assert "mispelt" not in cluster.admin.list_topics(timeout=10).topics  # looking for it has not created it


def test_the_cluster_is_told_of_over_tls(secure: tuple[str, Path]) -> None:
    address, trusted = secure
    url = f"kafka://alice:{SECRET}@{address}?ca={trusted}"
    result = CliRunner().invoke(app, ["doctor", url])
    assert "cluster: It has 1 broker." in result.stdout
    assert result.exit_code == 0
    assert SECRET not in result.output


def test_a_login_that_is_refused_is_an_error_with_a_remedy(secure: tuple[str, Path]) -> None:
    address, trusted = secure
    result = CliRunner().invoke(app, ["doctor", f"kafka://alice:wrong@{address}?ca={trusted}"])
    assert result.exit_code == 1
    assert "does not accept this" in result.stdout


# --- topics


def test_a_missing_topic_is_a_warning_where_it_would_be_created(cluster: Cluster) -> None:
    assert [level for level, _ in about(cluster.examine(topic="no-such"), "topic no-such")] == ["warning"]
    findings = cluster.examine("?declare=false", topic="no-such")
    assert [level for level, _ in about(findings, "topic no-such")] == ["error"]
    assert not cluster.admin.list_topics(timeout=10).topics.keys() & {"no-such"}


def test_retention_shorter_than_the_retries_is_an_error(cluster: Cluster) -> None:
    topic = cluster.topic(retention_ms="60000")
    assert "error" not in levels(cluster.examine(topic=topic, retry_span=30.0))
    (found,) = [f for f in cluster.examine(topic=topic, retry_span=3600.0) if f.level == "error"]
    assert found.what == "It keeps messages for 1 min, but they may be retried for 1 h: some would be lost."
    assert "3600000" in found.remedy


def test_retry_topics_must_keep_messages_as_well(cluster: Cluster, group: str) -> None:
    topic = cluster.topic()
    cluster.topic(name=f"{topic}-{group}-retry-1d", retention_ms="60000")
    findings = cluster.examine(topic=topic, group=group, retry_span=3600.0)
    assert [each.subject for each in findings if each.level == "error"] == [f"topic {topic}-{group}-retry-1d"]


def test_more_copies_in_sync_than_there_are_is_an_error(cluster: Cluster) -> None:
    topic = cluster.topic(min_insync_replicas="2")
    errors = [each.what for each in cluster.examine(topic=topic) if each.level == "error"]
    assert errors == ["min.insync.replicas is 2 with 1 copies: no message with acks=all is taken."]


def test_one_copy_is_a_warning(cluster: Cluster) -> None:
    topic = cluster.topic()
    warnings = [
        what for level, what in about(cluster.examine(topic=topic), f"topic {topic}") if level == "warning"
    ]
    assert len(warnings) == 1
    assert "one copy" in warnings[0]


def test_fewer_partitions_than_handlers_are_a_warning(cluster: Cluster) -> None:
    topic = cluster.topic(partitions=2)
    found = about(cluster.examine(topic=topic, concurrency=8), f"topic {topic}")
    assert any(level == "warning" and "2 partitions for a concurrency of 8" in what for level, what in found)
    assert not any(
        "concurrency" in what
        for _, what in about(cluster.examine(topic=topic, concurrency=2), f"topic {topic}")
    )


def test_compaction_is_a_warning(cluster: Cluster) -> None:
    topic = cluster.topic(cleanup_policy="compact")
    assert any("compacted" in what for _, what in about(cluster.examine(topic=topic), f"topic {topic}"))


def test_a_topic_that_takes_less_than_the_url_says_is_a_warning(cluster: Cluster) -> None:
    topic = cluster.topic(max_message_bytes="1000")
    assert any("1,000 bytes" in what for _, what in about(cluster.examine(topic=topic), f"topic {topic}"))


def test_a_dead_letter_that_is_missing_or_keeps_less_is_a_warning(cluster: Cluster) -> None:
    topic = cluster.topic()
    dead = f"{topic}-dlq"
    ((level, what),) = about(cluster.examine(topic=topic), f"dead letter {dead}")
    assert (level, what.startswith("It does not exist")) == ("warning", True)
    cluster.topic(name=dead, retention_ms="60000")
    ((level, what),) = about(cluster.examine(topic=topic), f"dead letter {dead}")
    assert (level, what) == ("warning", f"It keeps dead letters for 1 min, shorter than {topic} (7 d).")


# --- groups


def test_a_group_that_is_not_there_is_a_warning(cluster: Cluster, group: str) -> None:
    topic = cluster.topic()
    cluster.publish(topic, 3)
    assert cluster.of_group(topic, group) == [
        (
            "warning",
            f"There is no such group; it will begin at the earliest of the 3 messages in {topic}, unless its first "
            "consumer says otherwise.",
        )
    ]


def test_a_group_without_members_while_messages_wait_is_stuck(cluster: Cluster, group: str) -> None:
    topic = cluster.topic()
    cluster.publish(topic, 5)
    cluster.commit(group, topic, 2)
    assert cluster.of_group(topic, group) == [
        ("error", f"It is stuck: 3 messages of {topic} wait, and nobody receives.")
    ]
    cluster.commit(group, topic, 5)
    assert cluster.of_group(topic, group) == [
        ("ok", f"It has 0 consumers of {topic}; 0 messages wait or are being handled.")
    ]


def test_messages_deleted_before_they_were_handled_are_an_error(cluster: Cluster, group: str) -> None:
    topic = cluster.topic()
    cluster.publish(topic, 10)
    cluster.commit(group, topic, 3, encode(3, [(4, 6)]))  # 4 and 5 were finished out of order
    for future in cluster.admin.delete_records([TopicPartition(topic, 0, 8)]).values():
        future.result(PATIENCE)
    found = cluster.of_group(topic, group)
    assert (
        "error",
        f"Up to 3 messages of {topic} were deleted before the group handled them (partition 0).",
    ) in found


def test_an_offset_beyond_the_end_is_a_warning(cluster: Cluster, group: str) -> None:
    topic = cluster.topic()
    cluster.commit(group, topic, 7)
    assert any(
        level == "warning" and "beyond the end" in what for level, what in cluster.of_group(topic, group)
    )


def test_members_of_another_topic_leave_it_stuck(cluster: Cluster, group: str) -> None:
    topic, other = cluster.topic(), cluster.topic()
    cluster.publish(topic, 1)
    consumer = cluster.consumer(group)
    try:
        consumer.subscribe([other])
        polled(consumer, lambda: bool(consumer.assignment()))
        found = cluster.of_group(topic, group)
    finally:
        consumer.close()
    assert found == [
        ("error", f"It is stuck: none of its 1 members receives partition 0 of {topic}, where messages wait.")
    ]


def test_a_group_that_receives_is_fine_and_idle_members_are_told(cluster: Cluster, group: str) -> None:
    topic = cluster.topic()
    first, second = cluster.consumer(group), cluster.consumer(group)
    try:
        first.subscribe([topic])
        polled(first, lambda: bool(first.assignment()))
        assert cluster.of_group(topic, group) == [
            ("ok", f"It has 1 consumer of {topic}; 0 messages wait or are being handled.")
        ]
        joined = threading.Event()
        second.subscribe([topic], on_assign=lambda *_: joined.set())
        polled(first, lambda: second.poll(0.05) is None and joined.is_set())
        polled(first, lambda: second.poll(0.05) is None and _stable(cluster, group))
        found = cluster.of_group(topic, group)
    finally:
        first.close()
        second.close()
    assert ("warning", "1 of its 2 members have no partition, and nothing to do.") in found


def _stable(cluster: Cluster, group: str) -> bool:
    described = cluster.admin.describe_consumer_groups([group])[group].result(PATIENCE)
    return described.state is ConsumerGroupState.STABLE and len(described.members) == 2


def test_a_member_that_does_not_let_go_is_a_long_rebalance(
    cluster: Cluster, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts_module, "REBALANCE", 1.0)
    topic = cluster.topic()
    holding = cluster.consumer(group, partition_assignment_strategy="range")
    waiting = cluster.consumer(group, partition_assignment_strategy="range")
    try:
        holding.subscribe([topic])
        polled(holding, lambda: bool(holding.assignment()))  # and never polls again
        waiting.subscribe([topic])
        polled(waiting, lambda: _rebalancing(cluster, group))
        found = cluster.of_group(topic, group)
    finally:
        holding.close()
        waiting.close()
    assert any(
        level == "warning" and what.startswith("It has been rebalancing for more than 1 s")
        for level, what in found
    )


def _rebalancing(cluster: Cluster, group: str) -> bool:
    described = cluster.admin.describe_consumer_groups([group])[group].result(PATIENCE)
    return described.state in REBALANCING


def test_of_a_share_group_it_says_what_cannot_be_asked(cluster: Cluster, group: str) -> None:
    findings = cluster.examine("?group_type=share", topic=cluster.topic(), group=group)
    assert [level for level, _ in about(findings, f"group {group}")] == ["ok"]


# --- the whole command


def test_the_command_shows_it_with_its_remedies(cluster: Cluster, group: str) -> None:
    topic = cluster.topic(retention_ms="60000")
    cluster.publish(topic, 1)
    cluster.commit(group, topic, 0)
    question = ["--topic", topic, "--group", group, "--retry-span", "3600", "--json"]
    result = CliRunner().invoke(app, ["doctor", cluster.server.url, *question])
    assert result.exit_code == 1
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    errors = {row["subject"]: row for row in rows if row["level"] == "error"}
    assert errors.keys() == {f"topic {topic}", f"group {group}"}
    assert all(row["remedy"] for row in rows if row["level"] != "ok")


def test_a_kafka_that_is_not_there_is_an_error() -> None:
    url = "kafka://me:secret@127.0.0.1:1?publish_timeout=1&security_protocol=plaintext"
    result = CliRunner().invoke(app, ["doctor", url])
    assert result.exit_code == 1
    assert result.stdout.startswith("error")
    assert "secret" not in result.output


# --- judging, without a broker


WELL = Copies(0, 3, 3)


def of_topic(
    copies: Copies = WELL, /, query: str = "", retry_span: float | None = None, **config: str
) -> list[str]:
    facts, parsed, question = Facts(), settings(query), Question("orders", retry_span=retry_span)
    named = {key.replace("_", "."): value for key, value in config.items()}
    add_topic(facts, "orders", [copies], named, parsed, question)
    return [each.level for each in concluded(facts, question, parsed) if each.level != "ok"]


@pytest.mark.parametrize(
    ("copies", "needed", "acks", "expected"),
    [
        (Copies(0, 3, 3), "2", "all", []),
        (Copies(0, 3, 3), "3", "all", ["warning"]),
        (Copies(0, 3, 3), "4", "all", ["error"]),
        (Copies(0, 3, 3), "1", "all", ["warning"]),
        (Copies(0, 3, 3), "1", "1", []),
        (Copies(0, 3, 2), "2", "all", ["warning"]),
        (Copies(0, 3, 1), "2", "all", ["error"]),
        (Copies(0, 3, 0, led=False), "2", "all", ["error", "warning"]),
        (Copies(0, 1, 1), "1", "all", ["warning"]),
    ],
)
def test_copies(copies: Copies, needed: str, acks: str, expected: list[str]) -> None:
    assert of_topic(copies, f"?acks={acks}", min_insync_replicas=needed) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"retention_ms": "1000"}, ["error"]),
        ({"retention_ms": "-1"}, []),
        ({"retention_ms": "1000", "cleanup_policy": "compact"}, ["warning"]),
        ({"retention_ms": "1000", "cleanup_policy": "compact,delete"}, ["error", "warning"]),
        ({"retention_ms": "-1", "retention_bytes": "1000"}, ["warning"]),
    ],
)
def test_retention(config: dict[str, str], expected: list[str]) -> None:
    assert of_topic(retry_span=60.0, min_insync_replicas="2", **config) == expected


def test_sizes() -> None:
    query = "?max_message_bytes=1000"
    assert of_topic(query=query, min_insync_replicas="2", max_message_bytes="999") == ["warning"]
    assert of_topic(query=query, min_insync_replicas="2", max_message_bytes="1000") == []


def test_a_dead_letter_with_less_of_everything_is_warned_of() -> None:
    facts, question, parsed = Facts(), Question("orders"), settings("?acks=1")
    source = {"max.message.bytes": "1000000", "retention.ms": "1000000000"}
    less = {"max.message.bytes": "999", "retention.ms": "1000", "cleanup.policy": "compact,delete"}
    add_topic(facts, "orders", [Copies(0, 3, 3)], source, parsed, question)
    add_topic(facts, "orders-dlq", [Copies(0, 1, 1)], less, parsed, question)
    found = [each for each in concluded(facts, question, parsed) if each.level != "ok"]
    assert [(each.level, each.subject) for each in found] == [("warning", "dead letter orders-dlq")] * 4


def test_what_is_finished_out_of_order_neither_waits_nor_is_lost() -> None:
    place = Place(0, start=4, end=10, committed=2, metadata=encode(2, [(3, 6), (8, 9)]))
    assert (place.lost, place.waiting) == (1, 3)
    assert "error" in of_group(Group("g", ConsumerGroupState.EMPTY), place)


def of_group(group: Group, *places: Place) -> list[str]:
    facts = Facts()
    add_group(facts, group, "orders", places)
    return levels(concluded(facts, Question("orders", "g"), settings()))


def test_a_partition_that_nobody_has_is_stuck_only_while_something_waits() -> None:
    group = Group("g", ConsumerGroupState.STABLE, 1, frozenset({0}))
    assert of_group(group, Place(0, 0, 9, 1), Place(1, 0, 9, 1)) == ["error"]
    assert of_group(group, Place(0, 0, 9, 1), Place(1, 0, 9, 9)) == ["ok"]


@pytest.mark.parametrize(
    ("query", "protocols", "expected"),
    [
        ("", "classic", ["ok", "ok"]),
        ("?group_protocol=consumer", "classic", ["ok", "error", "ok"]),
        ("?group_protocol=consumer", "classic, consumer", ["ok", "ok"]),
    ],
)
def test_what_the_url_asks_for_must_be_switched_on(query: str, protocols: str, expected: list[str]) -> None:
    facts = Facts()
    add_cluster(facts, 1, {PROTOCOLS: protocols}, settings(query))
    assert levels(facts.findings) == expected
