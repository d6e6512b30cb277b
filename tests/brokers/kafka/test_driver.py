"""What the driver for Kafka makes of URLs, records and errors; no broker is needed for these."""

import asyncio
import contextlib
import gc
import json
import sys
import weakref
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("confluent_kafka")

from confluent_kafka import KafkaError
from confluent_kafka import Message as Record

from things_kit import ConfigError, Message, MessageTooLarge, PublishError
from things_kit.brokers.kafka import producer
from things_kit.brokers.kafka.admin import Admin
from things_kit.brokers.kafka.driver import KafkaDriver
from things_kit.brokers.kafka.errors import refused, translated
from things_kit.brokers.kafka.options import (
    Settings,
    check_group,
    check_topic,
    instance_id,
    possible_topic,
)  # fmt: skip
from things_kit.brokers.kafka.standing import Standing
from things_kit.brokers.kafka.wire import TOMBSTONE, Clock, raw_headers, unpack
from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.engine.offsets import Offsets
from things_kit.engine.url import BrokerURL
from things_kit.engine.wait_topics import LEASE
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.process import free_ports


def settings(url: str) -> Settings:
    return Settings.from_url(BrokerURL.parse(url))


# --- options


def test_a_host_without_a_port_has_kafkas() -> None:
    assert settings("kafka://a,b:19092").common()["bootstrap.servers"] == "a:9092,b:19092"


def test_a_login_in_the_url_means_sasl_over_tls() -> None:
    config = settings("kafka://me:s%40cret@a:9093?ca=ca.pem").common()
    assert config["security.protocol"] == "sasl_ssl"
    assert (config["sasl.mechanism"], config["sasl.username"], config["sasl.password"]) == (
        "PLAIN",
        "me",
        "s@cret",
    )
    assert config["ssl.ca.location"] == "ca.pem"


def test_a_certificate_alone_means_tls() -> None:
    assert settings("kafka://a?ca=ca.pem").common()["security.protocol"] == "ssl"


def test_nothing_asked_for_is_plain() -> None:
    assert settings("kafka://a").common()["security.protocol"] == "plaintext"


def test_any_property_of_librdkafka_passes_through_and_has_the_last_word() -> None:
    asked = settings("kafka://a?conf.fetch.min.bytes=7&conf.linger.ms=3&conf.session.timeout.ms=9000")
    assert asked.consumer("g")["fetch.min.bytes"] == "7"
    assert asked.consumer("g")["session.timeout.ms"] == "9000"
    assert asked.producer(1000)["linger.ms"] == "3"


def test_settings_of_topics_by_which_messages_go_are_not_for_topics_that_keep_them() -> None:
    asked = settings(
        "kafka://a?topic.retention.ms=1000&topic.cleanup.policy=compact&topic.min.insync.replicas=2"
    )
    assert asked.topic_settings(kept=True) == {"min.insync.replicas": "2"}
    assert set(asked.topic_settings(kept=False)) == {"min.insync.replicas", "cleanup.policy", "retention.ms"}


def test_publishing_is_idempotent_and_meets_the_java_client_in_its_partitions() -> None:
    config = settings("kafka://a?publish_timeout=7").producer(1000)
    assert (config["enable.idempotence"], config["acks"], config["partitioner"]) == (
        True,
        "all",
        "murmur2_random",
    )
    assert config["message.timeout.ms"] == 7000


def test_a_weaker_confirmation_gives_up_idempotence_and_keeps_the_order_by_one_request_at_a_time() -> None:
    config = settings("kafka://a?acks=1").producer(1000)
    assert config["enable.idempotence"] is False
    assert config["max.in.flight.requests.per.connection"] == 1


@pytest.mark.parametrize("option", ["session_timeout=3600", "group_protocol=consumer"])
def test_who_carries_on_for_all_is_missed_after_ten_seconds_whatever_the_url_says(option: str) -> None:
    config = settings(f"kafka://a?{option}").with_session(LEASE).consumer("g")
    assert config["session.timeout.ms"] == 10_000
    assert "group.protocol" not in config


def test_the_new_group_protocol_leaves_assignment_and_sessions_to_the_broker() -> None:
    config = settings("kafka://a?group_protocol=consumer").consumer("g")
    assert config["group.protocol"] == "consumer"
    assert not {"partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"} & set(config)


def test_each_consumer_of_a_process_has_an_instance_of_its_own() -> None:
    names = [
        instance_id("w", *each)
        for each in [("orders", 0), ("orders", 1), ("orders-retry-10s", 0), ("x" * 249, 0)]
    ]
    assert names[:3] == ["w-orders", "w-orders-1", "w-orders-retry-10s"]
    assert len(set(names)) == 4
    assert all(possible_topic(name) for name in names), "Kafka takes no other"
    assert settings("kafka://a").consumer("g", names[0])["group.instance.id"] == "w-orders"


@pytest.mark.parametrize(
    "url",
    [
        "kafka://",
        "kafka://a/orders",
        "kafka://a?partitions=0",
        "kafka://a?replication=0",
        "kafka://a?session_timeout=0",
        "kafka://a?acks=0",
        "kafka://a?no_such=1",
        "kafka://a?conf.=1",
        "kafka://a?topic.=1",
        "kafka://%20me:pw@a",
    ],
)
def test_what_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        settings(url).common()


async def test_a_property_that_librdkafka_does_not_know_is_named() -> None:
    driver = KafkaDriver.from_url(BrokerURL.parse("kafka://a?conf.no.such.thing=1"))
    with pytest.raises(ConfigError, match=r"no\.such\.thing"):
        await driver.open()


async def test_a_bad_value_is_not_repeated() -> None:
    driver = KafkaDriver.from_url(BrokerURL.parse("kafka://a?conf.security.protocol=hunter2"))
    with pytest.raises(ConfigError) as raised:
        await driver.open()
    assert "hunter2" not in f"{raised.value!r} {raised.value.__context__!r}"


def test_share_groups_need_a_client_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "things_kit.brokers.kafka.share", raising=False)
    monkeypatch.delattr("confluent_kafka.ShareConsumer", raising=False)
    with pytest.raises(ConfigError, match=r"group_type=share needs confluent-kafka 2\.16 or newer"):
        KafkaDriver.from_url(BrokerURL.parse("kafka://a?group_type=share"))


def test_no_repr_shows_a_secret() -> None:
    assert "hunter2" not in repr(
        settings("kafka://me:hunter2@a?key_password=hunter2&conf.ssl.key.pem=hunter2")
    )


# --- names


@pytest.mark.parametrize("name", ["orders", "a.b_c-d", "x" * 249, "..."])
def test_a_topic_kafka_can_have(name: str) -> None:
    check_topic(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "ü", "x" * 250, "a\n", "^orders", "a\0"])
def test_a_topic_kafka_cannot_have(name: str) -> None:
    assert not possible_topic(name)
    with pytest.raises(ConfigError, match="Kafka cannot have a topic"):
        check_topic(name)


@pytest.mark.parametrize("name", ["", " x", "\tx", "x\0y", "\ud800", "x" * 40_000])
def test_a_group_librdkafka_would_change(name: str) -> None:
    with pytest.raises(ConfigError, match="Kafka cannot have a group"):
        check_group(name)


# --- records


def record(**fields: Any) -> Record:
    defaults: dict[str, Any] = {
        "topic": "orders",
        "partition": 3,
        "offset": 7,
        "timestamp": (1, 1_700_000_000_123),
    }
    return Record(**{**defaults, **fields})


def unpacked(*records: Record) -> list[Message]:
    deliveries, errors = unpack(list(records), {3: Offsets(0)})
    assert not errors
    return [delivery.message for delivery in deliveries]


@given(
    headers=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda n: not n.startswith("tk-")), st.text(st.characters(exclude_categories=["Cs"]))),
    identity=st.text(st.characters(exclude_categories=["Cs"])),
    moment=st.datetimes(timezones=st.just(UTC)),
)  # fmt: skip
def test_what_is_packed_is_unpacked(headers: dict[str, str], identity: str, moment: datetime) -> None:
    sent = Message("orders", b"v", b"k", headers, id=identity, timestamp=moment)
    taken = raw_headers(sent)
    assert not any("\0" in name for name in taken)
    assert not any("\0" in str(text) for text in taken.values())
    raw = [(name, str(text).encode()) for name, text in taken.items()]
    assert unpacked(record(value=b"v", key=b"k", headers=raw)) == [sent.replace(partition=3, offset=7)]


def test_a_recent_time_is_the_records_own_too() -> None:
    moment = datetime.now(UTC) - timedelta(hours=1)
    assert Clock().native(moment) == int(moment.timestamp() * 1000)


@pytest.mark.parametrize("away", [timedelta(days=-2), timedelta(hours=1), timedelta(days=-40_000)])
def test_a_time_that_kafka_would_delete_or_refuse_is_only_in_its_header(away: timedelta) -> None:
    moment = datetime.now(UTC) + away
    assert Clock().native(moment) == 0


def test_a_foreign_record_is_a_message() -> None:
    [message] = unpacked(record(value=b"v", headers=[("type", b"x")]))
    assert message.id == "orders-3-7"
    assert message.timestamp == datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC)
    assert (message.key, message.value, message.headers) == (None, b"v", {"type": "x"})


def test_a_tombstone_says_so() -> None:
    [gone, empty] = unpacked(record(value=None, key=b"k"), record(value=b"", key=b"k", offset=8))
    assert (gone.value, gone.headers) == (b"", {TOMBSTONE: "true"})
    assert (empty.value, empty.headers) == (b"", {})


def test_of_a_repeated_header_the_last_one_counts() -> None:
    assert unpacked(record(headers=[("a", b"1"), ("a", b"2")]))[0].headers == {"a": "2", TOMBSTONE: "true"}


def test_header_bytes_that_are_no_text_are_shown() -> None:
    assert unpacked(record(value=b"", headers=[("a", b"\xffx"), ("b", None)]))[0].headers == {
        "a": "\\xffx",
        "b": "",
    }


@pytest.mark.parametrize(
    "headers",
    [
        [("tk-id", b"\xff")],
        [("tk-id", None)],
        [("tk-time", b"noon")],
        [("tk-packed", b"{")],
        [("tk-packed", b"[1]")],
    ],
)
def test_headers_of_our_names_that_are_not_ours_are_left_out(headers: list[tuple[str, bytes | None]]) -> None:
    [message] = unpacked(record(value=b"v", headers=[("a", b"b"), *headers]))
    assert (message.id, message.value, message.headers) == ("orders-3-7", b"v", {"a": "b"})


@pytest.mark.parametrize("stamp", [(0, 0), (1, -1), (1, 2**62), (1, -(2**62))])
def test_a_mad_clock_breaks_nothing(stamp: tuple[int, int]) -> None:
    [message] = unpacked(record(value=b"v", timestamp=stamp))
    assert message.timestamp is not None


def test_what_was_finished_before_is_not_handed_out() -> None:
    offsets = Offsets(5, [(6, 8)])
    records = [record(value=b"v", offset=offset) for offset in range(5, 10)]
    deliveries, _ = unpack(records, {3: offsets})
    assert [delivery.message.offset for delivery in deliveries] == [5, 8, 9]


def test_records_of_a_partition_that_was_taken_away_are_dropped() -> None:
    assert unpack([record(value=b"v")], {}) == ([], [])
    between = [record(value=b"v", partition=partition) for partition in (4, 3, 4)]
    deliveries, _ = unpack(between, {4: Offsets()})
    assert [delivery.message.partition for delivery in deliveries] == [4, 4]


def test_partitions_of_a_batch_have_their_own_offsets() -> None:
    partitions = {3: Offsets(), 4: Offsets(5, [(6, 8)])}
    places = [(3, 7), (3, 9), (4, 5), (4, 6), (3, 10), (4, 8)]
    deliveries, _ = unpack([record(value=b"v", partition=p, offset=o) for p, o in places], partitions)
    places.remove((4, 6))
    assert [(each.message.partition, each.offset) for each in deliveries] == places
    assert all(each.token is partitions[each.message.partition or 0] for each in deliveries)
    assert [list(each.unfinished) for each in partitions.values()] == [[7, 9, 10], [5, 8]]


def test_an_error_among_records_leaves_those_around_it() -> None:
    gone = KafkaError(KafkaError._ALL_BROKERS_DOWN)
    batch = [record(value=b"a"), record(error=gone), record(value=b"b", offset=8)]
    deliveries, errors = unpack(batch, {3: Offsets()})
    assert ([each.offset for each in deliveries], errors) == ([7, 8], [gone])


def test_the_end_of_a_partition_is_a_place_beyond_what_came_before_it() -> None:
    offsets = Offsets()
    end = KafkaError(KafkaError._PARTITION_EOF)
    deliveries, errors = unpack([record(value=b"a"), record(error=end, offset=12)], {3: offsets})
    assert (len(deliveries), errors, offsets.end, list(offsets.unfinished)) == (1, [], 12, [7])


def test_what_was_unpacked_is_no_business_of_the_garbage_collector() -> None:
    headers = [("type", b"x"), ("tk-id", b"1"), ("tk-time", b"2026-11-30T12:00:00.000000+00:00")]
    records = [record(value=b"v", key=b"k", headers=headers, offset=offset) for offset in range(1000)]
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        deliveries, _ = unpack(records, {3: Offsets()})
        left = len(gc.get_objects()) - before
    finally:
        gc.enable()
    assert len(deliveries) == 1000
    assert left < -900, "the records are gone, and nothing else has come"


# --- errors


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, MessageTooLarge),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, UnknownTopic),
        (KafkaError._UNKNOWN_TOPIC, UnknownTopic),
        (KafkaError._UNKNOWN_PARTITION, PublishError),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, PublishError),
        (KafkaError._MSG_TIMED_OUT, ConnectionLost),
        (KafkaError.NOT_ENOUGH_REPLICAS, ConnectionLost),
    ],
)
def test_why_a_message_was_refused(code: int, kind: type[Exception]) -> None:
    error = refused(KafkaError(code), "orders")
    assert type(error) is kind
    assert error.__cause__ is not None


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (KafkaError._TRANSPORT, ConnectionLost, "asking"),
        (KafkaError.COORDINATOR_LOAD_IN_PROGRESS, ConnectionLost, "asking"),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, ConfigError, "ACL"),
        (KafkaError._AUTHENTICATION, ConfigError, "login"),
        (KafkaError.UNSUPPORTED_VERSION, ConfigError, "too old"),
        (KafkaError.INVALID_REPLICATION_FACTOR, ConfigError, "replication"),
        (KafkaError._DESTROY_BROKER, ConnectionLost, "asking"),
        (KafkaError.UNKNOWN, ConnectionLost, "asking"),
    ],
)
def test_what_an_error_means(code: int, kind: type[Exception], says: str) -> None:
    error = translated(KafkaError(code), "asking")
    assert type(error) is kind
    assert says in str(error)


# --- standing


def standing(monkeypatch: pytest.MonkeyPatch, session: int) -> Standing:
    """That of a member."""
    monkeypatch.setattr("things_kit.brokers.kafka.standing.time.monotonic", lambda: 100.0)
    return Standing(settings(f"kafka://a?session_timeout={session}").options, member=True)


def standing_after(monkeypatch: pytest.MonkeyPatch, seconds: float, **said: Any) -> Standing:
    """One that heard the same statistics at the beginning and at the end of so many seconds."""
    member = standing(monkeypatch, 10)
    hears(monkeypatch, member, 0.0, **said)
    hears(monkeypatch, member, seconds, **said)
    return member


def hears(monkeypatch: pytest.MonkeyPatch, member: Standing, at: float, **said: Any) -> None:
    """Statistics, so many seconds after it began."""
    monkeypatch.setattr("things_kit.brokers.kafka.standing.time.monotonic", lambda: 100.0 + at)
    group = {"state": said.get("state", "up"), "join_state": said.get("joining", "steady")}
    idle = int(1e6 * said.get("silence", 0.0))
    brokers = {
        name: {"nodeid": node, "state": "UP", "rxidle": idle, "waitresp_cnt": 1}
        for name, node in said.get("brokers", {"a:9092/1": 1, "GroupCoordinator": -1}).items()
    }
    text = json.dumps({"brokers": brokers, "cgrp": group, "more": [1, {"that": "is not read"}]})
    member.heard(text)


def test_a_member_that_hears_of_its_group_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    member = standing_after(monkeypatch, 1000)
    assert member.ailment(joined=True, has_any=False) is None


def test_a_client_that_has_forgotten_its_last_broker_is_said_to_hear_of_none_and_then_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost: Any = {"state": "query-coord", "joining": "init", "brokers": {}}
    ailment = standing_after(monkeypatch, 4, **lost).ailment(joined=True, has_any=True)
    assert ailment == "the broker does not answer"
    with pytest.raises(ConnectionLost):
        standing_after(monkeypatch, 12, **lost).ailment(joined=True, has_any=True)


def test_a_member_leaves_shortly_before_its_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = standing_after(monkeypatch, 1, silence=7.0)
    assert silent.ailment(joined=True, has_any=True) is None
    with pytest.raises(ConnectionLost, match="coordinator"):
        standing_after(monkeypatch, 1, silence=8.5).ailment(joined=True, has_any=True)


def test_a_rebalance_that_takes_long_is_waited_out_but_not_one_that_nobody_has_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = standing_after(
        monkeypatch, 30, joining="wait-join", silence=30.0, brokers={"a:9092/1": 1, "GroupCoordinator": -1}
    )
    waits.away.note(False)
    assert "rebalancing" in (waits.ailment(joined=True, has_any=False) or "")
    with pytest.raises(ConnectionLost, match="does not ask"):
        standing_after(monkeypatch, 6, joining="wait-metadata").ailment(joined=False, has_any=False)


def test_a_member_that_was_joining_when_its_broker_died_waits_for_it_as_long_as_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its group still counts on it, and would let nobody else in before its session has ended."""
    dead: Any = {"state": "query-coord", "joining": "init", "brokers": {}}
    unknown, joining = standing(monkeypatch, 20), standing(monkeypatch, 20)
    hears(monkeypatch, joining, 0.0, joining="wait-join")
    for member in (unknown, joining):
        hears(monkeypatch, member, 1.0, **dead)
        hears(monkeypatch, member, 19.0, **dead)
    with pytest.raises(ConnectionLost, match="no broker has answered"):
        unknown.ailment(joined=False, has_any=False)
    assert joining.ailment(joined=False, has_any=False) == "the broker does not answer"
    hears(monkeypatch, joining, 22.0, **dead)
    with pytest.raises(ConnectionLost, match="no broker has answered"):
        joining.ailment(joined=False, has_any=False)


def test_a_member_that_its_group_has_forgotten_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    out = standing_after(monkeypatch, 61, joining="wait-join")
    with pytest.raises(ConnectionLost, match="not in its group"):
        out.ailment(joined=True, has_any=False)


# --- the admin client


async def test_an_admin_client_without_an_answer_is_replaced_and_ends_though_its_error_is_kept() -> None:
    """Errors have tracebacks, and these all that was named in their frames; the engine keeps the last one."""
    (port,) = free_ports(1)
    admin = Admin(settings(f"kafka://127.0.0.1:{port}"))
    admin.open()
    first = weakref.ref(admin.client)
    with pytest.raises(ConnectionLost, match="Connection refused") as kept:
        await admin.ping()
    await eventually(lambda: first() is None)
    assert kept.value.__traceback__ is not None
    with pytest.raises(ConnectionLost):
        await admin.ping()
    await admin.close()


# --- the producer


async def test_a_producer_that_does_not_find_back_is_replaced_however_little_time_each_message_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an outage, when each that is sent has waited for nearly as long as it may."""
    monkeypatch.setattr(producer, "OVERDUE", 1.0)
    monkeypatch.setattr(producer, "AGAIN", 0.2)
    monkeypatch.setattr(producer, "LOOK", 0.05)
    (port,) = free_ports(1)

    async def others_are_answered() -> None:
        pass

    sending = producer.SendingThread(settings(f"kafka://127.0.0.1:{port}"), others_are_answered)
    message = Message("orders", b"x", id="1", timestamp=datetime.now(UTC))

    async def begun_anew() -> bool:
        with contextlib.suppress(TimeoutError, ConnectionLost):
            async with asyncio.timeout(0.4):
                await sending.send([message], {})
        return "publishing begins anew" in caplog.text

    await eventually(begun_anew)
    await sending.close()
