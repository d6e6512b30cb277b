"""What belongs to NATS alone: names, headers, streams and consumers of others, and what a server may take away."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("nats")

from nats.aio.client import Client
from nats.js import JetStreamContext

from things_kit import (
    Broker,
    BrokerUnavailable,
    ConfigError,
    Message,
    MessageTooLarge,
    PublishError,
    Retry,
    connect,
)
from things_kit.brokers.nats import receiver
from things_kit.brokers.nats.options import LONGEST, NATSOptions, Settings, check_topic, escaped
from things_kit.brokers.nats.wire import PUBLICATION, envelope, raw_headers
from things_kit.engine.collected import collect
from things_kit.engine.driver import ConnectionLost, Delivery, Marking, Subscription
from things_kit.engine.envelope import ID, KEY, PACKED
from things_kit.engine.url import BrokerURL
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.nats import NATSServer

nats_server = shared(NATSServer, "nats")

RESTRICTED = """authorization { users: [
  { user: admin, password: x }
  { user: app, password: x, permissions: { publish: { deny: ["$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.UPDATE.>"] } } }
] }"""

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
DEAD = dict.fromkeys(
    ("original-topic", "consumer-group", "attempts", "error-type", "error", "timestamp"), "x"
)


@pytest.fixture
async def broker(nats_server: NATSServer) -> AsyncIterator[Broker]:
    async with connect(nats_server.url + "?lease=10") as broker:
        yield broker


# --- URLs and names


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nats://", "nats://HOST:PORT"),
        ("nats://a:4222/path", "nats://HOST:PORT"),
        ("nats://a?replicas=9", "replicas must be from 1 to 5"),
        ("nats://a?lease=0", "lease"),
        ("nats://a?storage=tape", "storage"),
        ("nats://a?stream=a.b", "stream must be a name"),
        ("nats://a?key=x", "needs 'cert'"),
        ("nats://a?max_age=1&duplicate_window=5", "duplicate_window"),
        ("nats://a?streem=x", "unknown option"),
    ],
)
def test_a_url_that_means_nothing_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        connect(url)


def test_hosts_without_a_port_have_4222() -> None:
    settings = Settings.from_url(BrokerURL.parse("nats://u:p@a,b:5000,[::1]"))
    assert settings.servers == ["a:4222", "b:5000", "[::1]:4222"]
    assert "p@" not in repr(settings)


def test_names_that_differ_have_streams_that_differ() -> None:
    names = [
        "a",
        "A",
        "a.b",
        "a=2Eb",
        "a=b",
        "a b",
        "a/b",
        "a-b",
        "a_b",
        "é",
        "x" * 400,
        "x" * 401,
        "x" * LONGEST,
    ]
    streams = [escaped(name) for name in names]
    assert len(set(streams)) == len(names)
    assert not [each for each in streams if set(each) & set(" .*>/\\\t\r\n") or len(each) > 255]


@pytest.mark.parametrize(
    "topic",
    [
        "a.*",
        "a.>",
        ">",
        "a..b",
        ".a",
        "a.",
        "a b",
        "a\tb",
        "a\r\nPUB x 1",
        "a\x00",
        "a\x7f",
        "$JS.API.INFO",
        "_INBOX.x",
        "a\u2028b",
        "a\x85b",
    ],
)
def test_what_is_no_single_subject_is_no_topic(topic: str) -> None:
    with pytest.raises(ConfigError, match="NATS cannot have a topic"):
        check_topic(topic)


async def test_a_topic_that_begins_as_another_is_another(broker: Broker, topic: str) -> None:
    longer, seen = f"{topic}.created", Recorder()
    async with broker.consumer(longer, group="g", handler=seen, dead_letter=None):
        await broker.producer().publish_batch([Message(topic, b"short"), Message(longer, b"long")])
        await seen.until_done(1, 10)
    await broker.remove(longer)
    assert seen.values == [b"long"]
    assert await broker.lag(topic, "other") == 1


async def test_topics_that_cannot_be_are_refused_though_nothing_is_declared(nats_server: NATSServer) -> None:
    async with connect(f"{nats_server.url}?declare=false") as broker:
        with pytest.raises(PublishError, match="NATS cannot have a topic"):
            await broker.producer().publish(Message("a\r\nPUB evil 1\r\nx\r\n", b"x"))


# --- headers


def test_what_nats_can_carry_is_native_and_the_rest_is_packed() -> None:
    headers = {
        "type": "order.created", "empty": "", "Status": "404", "Nats-Rollup": "all", "a:b": "x", "": "nameless",
        "trimmed": " x ", "lines": "a\r\nNats-Rollup: all", "script": "ключ", "encoded": "=?utf-8?q?x?=",
    }  # fmt: skip
    raw = raw_headers(Message("t", b"", b"k", headers, id="m-1", timestamp=MOMENT), envelope(), "p-1")
    assert {name: raw[name] for name in raw if name not in {PACKED, "tk-time"}} == {
        "type": "order.created", "empty": "", KEY: "k", ID: "m-1", PUBLICATION: "p-1",
    }  # fmt: skip
    assert all(text.isascii() and text.isprintable() for text in raw.values())


@pytest.mark.parametrize("identity", ["", "ключ", "a\r\nNats-Rollup: all", "x" * 600, " x"])
def test_an_id_that_is_no_header_is_packed(identity: str) -> None:
    raw = raw_headers(Message("t", b"", id=identity, timestamp=MOMENT), envelope(), None)
    assert raw[PUBLICATION].startswith("tk-sha256:")
    assert (ID in raw) != (PACKED in raw)
    assert raw.get(ID, identity) == identity


def test_where_ids_are_kept_once_a_dead_letter_is_another_message_to_the_stream() -> None:
    plain = Message("t", b"", id="m-1", timestamp=MOMENT)
    dead = raw_headers(plain.replace(headers=DEAD), envelope(), None)
    assert raw_headers(plain, envelope(), None) == {
        "tk-time": "2026-01-02T03:04:05.678901+00:00",
        PUBLICATION: "m-1",
    }
    assert (
        dead[PUBLICATION] == raw_headers(plain.replace(headers=DEAD), envelope(), None)[PUBLICATION] != "m-1"
    )
    assert dead[ID] == "m-1"


async def test_a_foreign_message_is_read_with_what_it_has(
    broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    await broker.declare(topic, ["g"])
    await stream.publish(topic, b"plain")
    rubbish = {
        "tk-time": "soon",
        "tk-packed": "rubbish",
        "tk-other": "x",
        "Nats-Expected-Stream": topic,
        "a": "b",
    }
    await stream.publish(topic, b"rubbish", headers=rubbish)
    seen = Recorder()
    async with broker.consumer(topic, group="g", handler=seen, dead_letter=None):
        await seen.until_done(2, 10)
    plain, odd = seen.done
    assert (plain.value, plain.key, plain.headers, plain.id) == (b"plain", None, {}, f"{topic}-1")
    assert plain.timestamp is not None
    assert abs((datetime.now(UTC) - plain.timestamp).total_seconds()) < 60
    assert (odd.headers, odd.id) == ({"Nats-Expected-Stream": topic, "a": "b"}, f"{topic}-2")


# --- publishing


async def test_messages_of_one_id_are_all_kept(nats_server: NATSServer, stream: JetStreamContext) -> None:
    """A bridge, a handler that forwards and a replay publish them; so do two topics of one stream."""
    name = f"all-{uuid4().hex[:10]}"
    topics = [f"{name}.a", f"{name}.b"]
    async with connect(f"{nats_server.url}?stream={name}") as broker:
        same = [Message(topic, value, id="same") for topic in topics for value in (b"1", b"2")]
        await broker.producer().publish_batch(same)
        for message in same:
            await broker.producer().publish(message)
        assert [await broker.lag(topic, "g") for topic in topics] == [4, 4]
        seen = Recorder()
        async with broker.consumer(topics, group="g", handler=seen, dead_letter=None):
            await seen.until_done(8, 10)
        assert {each.id for each in seen.done} == {"same"}
    await stream.delete_stream(name)


async def test_a_message_is_kept_once_within_the_window_by_its_id_if_the_url_asks_for_it(
    nats_server: NATSServer, topic: str
) -> None:
    async with connect(f"{nats_server.url}?deduplicate=id") as broker:
        producer = broker.producer()
        for value in (b"1", b"2"):
            await producer.publish(Message(topic, value, id="same"))
        assert await broker.lag(topic, "g") == 1
        await producer.publish(Message(topic, b"1", headers={"replay-group": "g"}, id="same"))
        assert await broker.lag(topic, "g") == 2, "what comes back is another"
        seen = Recorder()
        async with broker.consumer(topic, group="g", handler=seen, dead_letter=None):
            await seen.until_done(2, 10)
        assert [(each.value, each.id) for each in seen.done] == [(b"1", "same")] * 2


async def test_a_publish_that_is_sent_again_is_kept_once(broker: Broker, topic: str) -> None:
    """Its confirmation was lost with the connection, and nobody knows whether it was stored."""
    driver: Any = broker.transmission.driver
    await broker.declare(topic)
    messages = [Message(topic, b"%d" % n, id="same", timestamp=MOMENT) for n in range(3)]
    answered = driver._connection.answered

    async def lose(answers: Any) -> Any:
        await answered(answers)
        raise ConnectionLost("the confirmation never came")

    driver._connection.answered = lose
    with pytest.raises(ConnectionLost):
        await driver.send(messages)
    driver._connection.answered = answered
    assert await driver.send([messages[1], messages[0]]) == [None, None]
    assert await broker.lag(topic, "g") == 3
    assert await driver.send(messages[:2]) == [None, None]
    assert await broker.lag(topic, "g") == 5, "that was another publish"


async def test_a_message_that_grows_too_large_by_its_headers_harms_no_other(
    broker: Broker, topic: str
) -> None:
    limit = broker.capabilities.max_message_bytes or 0
    large = Message(topic, b"x" * (limit - 19_000), key=b"\xff" * 18_000)  # a third more in Base64
    with pytest.raises(PublishError) as raised:
        await broker.producer().publish_batch([Message(topic, b"1"), large, Message(topic, b"2")])
    assert {index: type(error) for index, error in raised.value.failures.items()} == {1: MessageTooLarge}
    assert await broker.lag(topic, "g") == 2
    await broker.producer().publish(Message(topic, b"x" * limit))


async def test_a_stream_that_takes_less_says_so_for_the_message_alone(
    broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    await stream.add_stream(name=topic, subjects=[topic], max_msg_size=300)
    with pytest.raises(PublishError) as raised:
        await broker.producer().publish_batch(
            [Message(topic, b"1"), Message(topic, b"x" * 400), Message(topic, b"2")]
        )
    assert {index: type(error) for index, error in raised.value.failures.items()} == {1: MessageTooLarge}


async def test_a_full_stream_that_discards_nothing_refuses(nats_server: NATSServer, topic: str) -> None:
    async with connect(f"{nats_server.url}?max_bytes=300&discard=new") as broker:
        producer = broker.producer()
        with pytest.raises(PublishError) as raised:
            await producer.publish_batch([Message(topic, b"x" * 100) for _ in range(10)])
        assert "maximum bytes exceeded" in str(raised.value.failures[9])


async def test_a_stream_that_was_deleted_is_declared_again(
    broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    await broker.producer().publish(Message(topic, b"1"))
    await stream.delete_stream(topic)
    await broker.producer().publish(Message(topic, b"2"))
    assert await broker.lag(topic, "g") == 1


# --- streams and consumers of others


async def test_a_topic_is_found_in_the_stream_that_takes_it(
    broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    both = f"{topic}-all"
    await stream.add_stream(name=both, subjects=[f"{topic}.*"])
    seen = Recorder()
    async with broker.consumer(f"{topic}.a", group="g", handler=seen, dead_letter=None):
        await broker.producer().publish_batch([Message(f"{topic}.a", b"a"), Message(f"{topic}.b", b"b")])
        await seen.until_done(1, 10)
    assert await broker.lag(f"{topic}.a", "other") == await broker.lag(f"{topic}.b", "other") == 1
    await broker.remove(f"{topic}.a")
    assert (await broker.lag(f"{topic}.a", "g"), await broker.lag(f"{topic}.b", "other")) == (0, 1)
    await stream.delete_stream(both)


async def test_the_stream_of_the_url_has_all_its_topics(
    nats_server: NATSServer, stream: JetStreamContext, topic: str
) -> None:
    async with connect(f"{nats_server.url}?stream={topic}-all") as broker:
        for name in (topic, f"{topic}.more"):
            await broker.producer().publish(Message(name, b"x"))
        info = await stream.stream_info(f"{topic}-all")
        assert (info.config.subjects, info.state.messages) == ([topic, f"{topic}.more"], 2)
    await stream.delete_stream(f"{topic}-all")


async def test_a_stream_of_the_same_name_and_other_subjects_is_said_so(
    broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    await stream.add_stream(name=topic, subjects=[f"other-{topic}"])
    with pytest.raises(ConfigError, match="of other subjects"):
        await broker.declare(topic)
    await stream.delete_stream(topic)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"ack_policy": "none"}, "ack_policy 'none'"), ({"deliver_subject": "x"}, "push consumer")],
    ids=["unacknowledged", "push"],
)
async def test_a_consumer_of_another_kind_is_said_so(
    broker: Broker, stream: JetStreamContext, topic: str, settings: dict[str, Any], said: str
) -> None:
    await broker.declare(topic)
    await stream.add_consumer(topic, durable_name="g", filter_subject=topic, **settings)
    with pytest.raises(ConfigError, match=said):
        await broker.consumer(topic, group="g", handler=Recorder(), dead_letter=None).start()


async def test_without_the_right_to_declare_what_is_missing_is_said(
    nats_server: NATSServer, broker: Broker, topic: str
) -> None:
    async with connect(f"{nats_server.url}?declare=false") as strict:
        with pytest.raises(PublishError, match="declare it first"):
            await strict.producer().publish(Message(topic, b"x"))
        with pytest.raises(ConfigError, match="no stream"):
            await strict.consumer(topic, group="g", handler=Recorder(), dead_letter=None).start()
        await broker.declare(topic)
        with pytest.raises(ConfigError, match="no group"):
            await strict.consumer(topic, group="g", handler=Recorder(), dead_letter=None).start()


# --- what the server loses


async def test_a_deleted_consumer_is_made_anew_where_the_group_was(
    broker: Broker, stream: JetStreamContext, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Recorder()
    await broker.producer().publish(Message(topic, b"1"))
    async with broker.consumer(topic, group="g", handler=seen, dead_letter=None, start="latest"):
        await broker.producer().publish(Message(topic, b"2"))
        await seen.until_done(1, 10)
        with caplog.at_level(logging.WARNING):
            await stream.delete_consumer(topic, "g")
            await broker.producer().publish(Message(topic, b"3"))
            await eventually(lambda: b"3" in seen.values, 10)
    assert b"1" not in seen.values
    assert "was deleted at the server; it is made anew at message 2" in caplog.text


async def test_a_lost_stream_is_made_anew_and_read_from_its_start(
    broker: Broker, stream: JetStreamContext, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Recorder()
    async with broker.consumer(topic, group="g", handler=seen, dead_letter=None, start="latest"):
        await broker.producer().publish(Message(topic, b"1"))
        await seen.until_done(1, 10)
        await stream.delete_stream(topic)
        await broker.producer().publish(Message(topic, b"2"))
        await eventually(lambda: b"2" in seen.values, 10)
    assert "its stream was lost at the server" in caplog.text


# --- attempts, leases and ephemeral groups


async def test_another_process_goes_on_counting_attempts(
    nats_server: NATSServer, broker: Broker, topic: str
) -> None:
    """What stop gives back unhandled counts for nobody; a failure counts for all."""

    async def fail(message: Message) -> None:
        # A server of 2.9 counts anew what is due in the very moment in which its request is withdrawn
        raise Retry(after=0.05 if message.attempt < 3 else 1.0)

    gate = Recorder(Gate())
    held = broker.consumer(topic, group="g", handler=gate, dead_letter=None, drain_timeout=0.05)
    await held.start()
    await broker.producer().publish(Message(topic, b"x"))
    await gate.until_began(1, 10)
    await held.stop()
    async with connect(nats_server.url + "?lease=10") as other:
        failing = Recorder(fail)
        consumer = other.consumer(topic, group="g", handler=failing, dead_letter=None)
        await consumer.start()
        await failing.until_began(3, 10)
        await consumer.stop()
        assert failing.attempts[:3] == [1, 2, 3]
    seen = Recorder()
    async with broker.consumer(topic, group="g", handler=seen, dead_letter=None):
        await seen.until_done(1, 10)
    assert seen.attempts == [len(failing.attempts) + 1]


async def lease_of(stream: JetStreamContext, topic: str) -> float | None:
    lease: float | None = (await stream.consumer_info(topic, "g")).config.ack_wait
    return lease


async def test_an_idle_group_takes_the_lease_of_who_joins(
    nats_server: NATSServer, broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    await broker.declare(topic, ["g"])
    for lease in (7, 3):
        async with (
            connect(f"{nats_server.url}?lease={lease}") as other,
            other.consumer(topic, group="g", handler=Recorder(), dead_letter=None),
        ):
            assert await lease_of(stream, topic) == lease


async def test_a_shorter_lease_takes_nothing_from_who_holds_for_a_longer_one(
    nats_server: NATSServer, stream: JetStreamContext, topic: str
) -> None:
    gate = Gate()
    held, others = Recorder(gate), Recorder(gate)
    async with (
        connect(f"{nats_server.url}?lease=9") as slow,
        connect(f"{nats_server.url}?lease=0.3") as quick,
        slow.consumer(topic, group="g", handler=held, dead_letter=None),
    ):
        await slow.producer().publish(Message(topic, b"x"))
        await held.until_began(1, 10)
        async with quick.consumer(topic, group="g", handler=others, dead_letter=None):
            assert await lease_of(stream, topic) == 9
            gate.open()
            await held.until_done(1, 10)
    assert not others.began


async def test_a_longer_lease_makes_that_of_the_group_longer(
    nats_server: NATSServer, stream: JetStreamContext, topic: str
) -> None:
    gate = Gate()
    held = Recorder(gate)
    async with (
        connect(f"{nats_server.url}?lease=0.5") as quick,
        connect(f"{nats_server.url}?lease=9") as slow,
        quick.consumer(topic, group="g", handler=held, dead_letter=None),
    ):
        await quick.producer().publish(Message(topic, b"x"))
        await held.until_began(1, 10)
        async with slow.consumer(topic, group="g", handler=held, dead_letter=None):
            assert await lease_of(stream, topic) == 9
            gate.open()
            await held.until_done(1, 10)


async def test_a_lease_that_an_operator_made_shorter_is_mended(
    nats_server: NATSServer, stream: JetStreamContext, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "LOOK", 0.0)
    async with connect(f"{nats_server.url}?lease=1.5") as broker:
        held = Recorder(Gate())
        async with broker.consumer(topic, group="g", handler=held, dead_letter=None, drain_timeout=0.05):
            await broker.producer().publish(Message(topic, b"x"))
            await held.until_began(1, 10)
            info = await stream.consumer_info(topic, "g")
            await stream.add_consumer(topic, info.config.evolve(ack_wait=1.0))

            async def mended() -> bool:
                return await lease_of(stream, topic) == 1.5

            await eventually(mended, 10)


async def test_a_lease_that_is_too_short_and_may_not_be_changed_is_said(
    nats_server: NATSServer, broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    await broker.declare(topic, ["g"])
    async with connect(f"{nats_server.url}?declare=false&lease=30") as strict:
        with pytest.raises(ConfigError, match="hands messages out again after 10 s"):
            await strict.consumer(topic, group="g", handler=Recorder(), dead_letter=None).start()
    async with (
        connect(f"{nats_server.url}?declare=false&lease=1") as strict,
        strict.consumer(topic, group="g", handler=Recorder(), dead_letter=None),
    ):
        assert await lease_of(stream, topic) == 10


async def test_without_a_stream_for_marks_nothing_can_be_marked_and_nothing_else_changes() -> None:
    """As for a user who may create no streams."""
    subscription = Subscription(topic="orders", group="g")
    with NATSServer(settings=RESTRICTED) as server:
        async with connect(server.url.replace("//", "//admin:x@")) as admin:
            await admin.declare("orders", ["g"])
        for option in ("", "&declare=false"):
            async with connect(f"{server.url.replace('//', '//app:x@')}?lease=10{option}") as broker:
                receiver = await collect(broker.transmission.driver, subscription)
                await broker.producer().publish(Message("orders", b"x"))
                [delivery] = await receiver.receive(1, 10)
                assert isinstance(receiver.receiver, Marking)
                with pytest.raises(ConfigError):
                    await receiver.receiver.mark(delivery, 1)
                await receiver.close()
                again = await collect(broker.transmission.driver, subscription)
                [delivery] = await again.receive(1, 10)
                assert (delivery.message.attempt, delivery.suspect) == (1, 0)
                await again.settle([delivery], [])
                await again.close()


async def test_what_a_closed_receiver_had_not_settled_comes_at_once_and_counts_for_nobody(
    nats_server: NATSServer, topic: str
) -> None:
    """Whether it was handed out or still in the buffer: without waiting for the lease."""
    async with connect(f"{nats_server.url}?lease=3600") as broker:
        driver, subscription = broker._driver, Subscription(topic=topic, group="g")
        await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(20)])
        for _ in range(2):
            closing = await collect(driver, subscription)
            assert await closing.receive(20, 10)
            await closing.close()
        last = await collect(driver, subscription)
        came: list[Delivery] = []
        while len(came) < 20:
            came += await last.receive(20, 10)
        assert {delivery.message.attempt for delivery in came} == {1}
        assert {delivery.message.offset for delivery in came} == set(range(1, 21))
        await last.settle(came, [])
        await last.close()


async def test_the_group_of_a_consumer_without_one_vanishes_with_it(
    broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    await broker.declare(topic)
    async with broker.consumer(topic, group=None, handler=Recorder(), dead_letter=None):
        [info] = await stream.consumers_info(topic)
        assert info.config.inactive_threshold is not None
        assert 0 < info.config.inactive_threshold <= 60
    assert await stream.consumers_info(topic) == []


async def test_a_consumer_that_waits_asks_once_for_what_comes(
    broker: Broker, client: Client, topic: str
) -> None:
    """A request stays at the server until it brings something; nothing is asked again and again."""
    seen, asked = Recorder(), 0

    async def count(_: object) -> None:
        nonlocal asked
        asked += 1

    await client.subscribe(f"$JS.API.CONSUMER.MSG.NEXT.{topic}.>", cb=count)
    await client.flush()
    async with broker.consumer(topic, group="g", handler=seen, dead_letter=None):
        for number in range(20):
            await broker.producer().publish(Message(topic, b"%d" % number))
            await seen.until_done(number + 1, 10)
        await client.flush()
    assert 20 <= asked <= 25


async def test_a_server_without_jetstream_is_said_so() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"max_payload":1048576,"headers":true,"version":"2.9.10"}\r\n')
        inbox = b""
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
            elif line.startswith(b"PUB"):
                inbox = line.split()[2]
                await reader.readline()
                writer.write(b"HMSG %s 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n" % inbox)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match="start the server with JetStream"):
            async with connect(f"nats://127.0.0.1:{port}"):
                pass


async def test_of_several_servers_one_is_enough(nats_server: NATSServer, topic: str) -> None:
    async with connect(f"nats://127.0.0.1:1,{nats_server.address},127.0.0.1:2") as broker:
        await broker.producer().publish(Message(topic, b"x"))
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        async with connect("nats://127.0.0.1:1,127.0.0.1:2?publish_timeout=0.3"):
            pass


def test_defaults_of_options_are_what_the_field_expects() -> None:
    options = NATSOptions()
    assert (options.replicas, options.storage, options.max_age, options.discard) == (1, "file", 0, "old")
