"""What is particular to RabbitMQ, on a real one."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("pika")

import pika
from pika.exceptions import ChannelClosedByBroker

from things_kit import (
    Broker,
    ConfigError,
    Message,
    MessageTooLarge,
    NobodyListens,
    PublishError,
    RetryPolicy,
    connect,
)
from things_kit.brokers.rabbitmq.wire import pack
from things_kit.engine.diagnosis import diagnose
from things_kit.engine.facts import Question
from things_kit.testing.conformance.history import assert_lanes, merged
from things_kit.testing.conformance.processes import WorkerProcess
from things_kit.testing.conformance.recorder import Recorder, failing
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.rabbitmq import RabbitMQServer


@pytest.fixture
def raw(rabbitmq: RabbitMQServer) -> Iterator[Any]:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        yield connection.channel()


async def test_a_group_is_removed_alone(broker: Broker, topic: str, raw: Any) -> None:
    await broker.declare(topic, groups=["gone", "kept"])
    await broker.producer().publish(Message(topic, b"x"))
    await broker.remove(topic, group="gone")
    await broker.remove(topic, group="never there")
    with pytest.raises(ChannelClosedByBroker):
        raw.queue_declare(f"gone.{topic}", passive=True)
    assert await broker.lag(topic, "kept") == 1
    await broker.producer().publish(Message(topic, b"y"))
    await broker.declare(topic, groups=["gone"])
    assert (await broker.lag(topic, "gone"), await broker.lag(topic, "kept")) == (0, 2)


async def test_a_queue_that_is_not_ours_is_not_deleted(rabbitmq: RabbitMQServer, topic: str) -> None:
    async with connect(f"{rabbitmq.url}?queue=theirs") as broker:
        with pytest.raises(ConfigError, match="is not ours to delete"):
            await broker.remove(topic, group="billing")


async def test_what_nobody_would_get_is_refused_for_each_message(broker: Broker, topic: str) -> None:
    heard = f"{topic}-heard"
    await broker.declare(heard, groups=["billing"])
    with pytest.raises(PublishError) as raised:
        await broker.producer().publish_batch([Message((topic, heard)[n % 2], b"x") for n in range(6)])
    assert {n: type(error) for n, error in raised.value.failures.items()} == dict.fromkeys(
        (0, 2, 4), NobodyListens
    )
    assert await broker.lag(heard, "billing") == 3
    await broker.remove(heard)


async def test_what_nobody_would_get_is_dropped_where_the_url_says_so(
    rabbitmq: RabbitMQServer, topic: str
) -> None:
    async with connect(f"{rabbitmq.url}?unrouted=drop") as dropping:
        await dropping.producer().publish(Message(topic, b"dropped"))
        await dropping.declare(topic, groups=["billing"])
        await dropping.producer().publish(Message(topic, b"kept"))
        assert await dropping.lag(topic, "billing") == 1


async def test_a_group_that_is_declared_gets_the_next_message(broker: Broker, topic: str) -> None:
    producer = broker.producer()
    with pytest.raises(NobodyListens, match=r"broker.declare\('orders-.*unrouted=drop"):
        await producer.publish(Message(topic, b"x"))
    await broker.declare(topic, groups=["billing"])
    await producer.publish(Message(topic, b"x"))
    assert await broker.lag(topic, "billing") == 1


async def test_a_batch_over_several_topics_has_the_right_answer_for_each(
    rabbitmq: RabbitMQServer, broker: Broker, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    async with connect(f"{rabbitmq.url}?declare=false") as strict:
        batch = [Message(topic, b"1"), Message("no-such-topic", b"2"), Message(topic, b"3")]
        with pytest.raises(PublishError) as raised:
            await strict.producer().publish_batch(batch)
    assert list(raised.value.failures) == [1]
    assert await broker.lag(topic, "billing") == 2


async def test_lag_is_never_short_of_what_is_on_its_way(broker: Broker) -> None:
    """What the server has sent is ready no more, and not here yet: a bridge would take the topic for empty."""
    never = asyncio.Event()

    async def waits(_: Message) -> None:
        await never.wait()

    for _ in range(25):
        topic = f"orders-{uuid4().hex[:10]}"
        await broker.declare(topic, groups=["g"])
        await broker.producer().publish_batch([Message(topic, b"x") for _ in range(205)])
        async with broker.consumer(topic, group="g", handler=waits, concurrency=300, drain_timeout=0):
            assert [await broker.lag(topic, "g") for _ in range(4)] == [205] * 4
        await broker.remove(topic)


async def test_groups_and_topics_with_dots_are_told_apart(broker: Broker) -> None:
    unique = uuid4().hex[:8]
    await broker.declare(f"c{unique}", groups=["a.b"])
    await broker.declare(f"b.c{unique}", groups=["a"])
    await broker.producer().publish(Message(f"c{unique}", b"x"))
    assert [await broker.lag(f"c{unique}", "a.b"), await broker.lag(f"b.c{unique}", "a")] == [1, 0]
    await broker.remove(f"c{unique}")
    await broker.remove(f"b.c{unique}")


async def test_a_queue_with_other_arguments_is_refused_with_what_differs(
    rabbitmq: RabbitMQServer, broker: Broker, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    async with connect(f"{rabbitmq.url}?exclusive=true") as other:
        with pytest.raises(
            ConfigError, match="x-single-active-consumer is none there, and true is asked for"
        ):
            await other.declare(topic, groups=["billing"])


async def test_an_exchange_of_another_type_is_refused_with_what_differs(
    broker: Broker, topic: str, raw: Any
) -> None:
    raw.exchange_declare(topic, "topic", durable=True)
    with pytest.raises(ConfigError, match="type is topic there, and fanout is asked for"):
        await broker.declare(topic)


async def test_an_exclusive_group_has_one_active_consumer(rabbitmq: RabbitMQServer, topic: str) -> None:
    async with (
        connect(f"{rabbitmq.url}?exclusive=true") as one,
        connect(f"{rabbitmq.url}?exclusive=true") as two,
    ):
        recorders = [Recorder(), Recorder()]
        first, _ = consumers = [
            each.consumer(topic, group="g", handler=recorder)
            for each, recorder in zip((one, two), recorders, strict=True)
        ]
        for consumer in consumers:
            await consumer.start()
        await one.producer().publish_batch([Message(topic, b"%d" % n) for n in range(50)])
        await recorders[0].until_done(50)
        assert recorders[1].done == []
        await eventually(lambda: lag_is(two, topic, 0))
        await first.stop()
        await two.producer().publish(Message(topic, b"x"))
        await recorders[1].until_done(1)


async def test_a_password_that_is_wrong_is_said_without_it(rabbitmq: RabbitMQServer) -> None:
    with pytest.raises(ConfigError, match="refuses this user name or password") as raised:
        async with connect(f"amqp://guest:hunter2-geheim@127.0.0.1:{rabbitmq.ports[0]}/"):
            pass
    assert "hunter2" not in f"{raised.value!r}{raised.value.__cause__!r}"


async def test_a_virtual_host_that_is_missing_is_said(rabbitmq: RabbitMQServer) -> None:
    with pytest.raises(ConfigError, match="virtual host"):
        async with connect(f"{rabbitmq.url}nowhere"):
            pass


async def test_of_several_hosts_the_first_that_answers_is_taken(rabbitmq: RabbitMQServer) -> None:
    async with connect(f"amqp://guest:guest@127.0.0.1:1,127.0.0.1:{rabbitmq.ports[0]}/") as opened:
        assert (await opened.health()).ok


async def test_headers_that_fit_no_frame_are_too_large(broker: Broker, topic: str) -> None:
    await broker.declare(topic, groups=["g"])
    batch = [Message(topic, b"1"), Message(topic, b"2", headers={"a": "x" * 140_000}), Message(topic, b"3")]
    with pytest.raises(PublishError) as raised:
        await broker.producer().publish_batch(batch)
    assert {index: type(error) for index, error in raised.value.failures.items()} == {1: MessageTooLarge}
    assert await broker.lag(topic, "g") == 2


async def test_what_a_foreign_program_put_into_headers_is_shown_as_text(
    broker: Broker, topic: str, raw: Any
) -> None:
    await broker.declare(topic, groups=["g"])
    headers: dict[str, Any] = {
        "n": 5,
        "yes": True,
        "list": [1, "a"],
        "table": {"x": None},
        "none": None,
        "bytes": b"\xff",
    }
    properties = pika.BasicProperties(
        headers=headers, message_id="id-1", timestamp=1_600_000_000, content_type="text/plain", type="order"
    )
    raw.basic_publish(topic, "k", b"x", properties)
    recorder = Recorder()
    async with broker.consumer(topic, group="g", handler=recorder):
        [message] = await recorder.until_done(1)
    assert message.headers == {
        "n": "5",
        "yes": "true",
        "list": '[1, "a"]',
        "table": '{"x": null}',
        "none": "",
        "bytes": "\\xff",
        "content-type": "text/plain",
        "type": "order",
    }
    assert (message.id, message.key, message.timestamp and message.timestamp.timestamp()) == (
        "id-1",
        b"k",
        1_600_000_000,
    )


async def test_headers_that_rabbitmq_would_take_as_its_own_arrive_unharmed(
    broker: Broker, topic: str
) -> None:
    headers = {
        "CC": "x",
        "BCC": "y",
        "x-death": "z",
        "x-delivery-count": "7",
        "x-request-id": "r",
        "n" * 300: "l",
    }
    recorder = Recorder(failing(1))
    policy = RetryPolicy(attempts=3, first=0.02, mode="delayed")
    async with broker.consumer(topic, group="g", handler=recorder, retry=policy):
        await broker.producer().publish(Message(topic, b"x", headers=headers, id="i" * 300))
        [message] = await recorder.until_done(1)
    assert (message.headers, message.id, message.attempt) == (headers, "i" * 300, 2)


async def test_a_delayed_retry_waits_in_the_broker_and_survives_its_consumer(
    broker: Broker, topic: str
) -> None:
    recorder = Recorder(failing(1))
    policy = RetryPolicy(attempts=3, first=1.5, jitter=0.0, mode="delayed")
    async with broker.consumer(topic, group="g", handler=recorder, retry=policy):
        await broker.producer().publish(Message(topic, b"x", key=b"\xff"))
        await recorder.until_began(1)
        await eventually(lambda: not recorder.running)
    assert await broker.lag(topic, "g") == 1
    heir = Recorder()
    async with broker.consumer(topic, group="g", handler=heir):
        [message] = await heir.until_done(1)
    assert (message.attempt, message.key) == (2, b"\xff")
    assert heir.started_at[0] - recorder.failed_at[0] >= 1.48


async def test_a_removed_topic_leaves_no_queue(broker: Broker, topic: str, raw: Any) -> None:
    async with connect(broker_url(broker)) as other:
        await other.declare(topic, groups=["a", "b"])
    await broker.remove(topic)
    for queue in (f"a.{topic}", f"b.{topic}", f".things-kit.groups.{topic}"):
        channel = raw.connection.channel()
        with pytest.raises(ChannelClosedByBroker, match="NOT_FOUND"):
            channel.queue_declare(queue, passive=True)


def broker_url(broker: Broker) -> str:
    return f"amqp://guest:guest@{broker.url.hosts[0]}/"


async def test_an_exchange_and_a_queue_that_exist_are_used(rabbitmq: RabbitMQServer, raw: Any) -> None:
    unique = uuid4().hex[:8]
    exchange, queue = f"events-{unique}", f"work-{unique}"
    raw.exchange_declare(exchange, "topic", durable=True)
    raw.queue_declare(queue, durable=True)
    raw.queue_bind(queue, exchange, "order.*")
    async with connect(f"{rabbitmq.url}?exchange={exchange}&queue={queue}") as opened:
        recorder = Recorder()
        async with opened.consumer("order.created", group="g", handler=recorder, dead_letter=None):
            await opened.producer().publish(Message("order.created", b"x", key=b"k"))
            [message] = await recorder.until_done(1)
        assert (message.value, message.key) == (b"x", b"k")
        with pytest.raises(ConfigError, match="pattern"):
            await opened.producer().publish(Message("order.*", b"x"))
    raw.queue_delete(queue)
    raw.exchange_delete(exchange)


async def test_a_consumer_that_may_not_declare_says_what_is_missing(
    rabbitmq: RabbitMQServer, topic: str
) -> None:
    async with connect(f"{rabbitmq.url}?declare=false") as strict:
        consumer = strict.consumer(topic, group="g", handler=Recorder(), dead_letter=None)
        with pytest.raises(ConfigError, match="declare it first"):
            await consumer.start()


async def test_the_doctor_finds_a_group_that_is_missing_and_one_that_nobody_consumes(
    broker: Broker, topic: str
) -> None:
    question = Question(topic=topic, group="g")
    missing = {finding.what for finding in await diagnose(broker, question) if finding.level == "error"}
    assert any("It has no queue" in what for what in missing)
    await broker.declare(topic, groups=["g"])
    await broker.producer().publish(Message(topic, b"x"))
    [stuck] = [finding for finding in await diagnose(broker, question) if finding.level == "error"]
    assert "nobody receives" in stuck.what
    assert stuck.remedy


def test_a_letter_has_the_key_as_routing_key_only_where_it_is_text() -> None:
    keys = {
        key: pack(Message("t", b"", key=key, id="1"), "t", True, "").routing_key
        for key in (b"k", b"", b"\xff", None)
    }
    assert keys == {b"k": "k", b"": "", b"\xff": "", None: ""}


async def test_lag_is_what_is_ready_and_what_this_process_holds_and_no_other(
    rabbitmq: RabbitMQServer, broker: Broker, topic: str
) -> None:
    gate, begun = asyncio.Event(), Recorder()

    async def wait(message: Message) -> None:
        await begun.handle(message)
        await gate.wait()

    await broker.declare(topic, groups=["g"])
    worker = await WorkerProcess.start(rabbitmq.url, topic, "g", hang_after=0, max_in_flight=1)
    await broker.producer().publish(Message(topic, b"held by another process"))
    await eventually(lambda: worker.history.ids("began"), 20)
    async with (
        connect(rabbitmq.url) as other,
        other.consumer(topic, group="g", handler=wait, max_in_flight=3, concurrency=3),
    ):
        await broker.producer().publish_batch([Message(topic, b"x") for _ in range(5)])
        await begun.until_done(3)
        assert (await other.lag(topic, "g"), await broker.lag(topic, "g")) == (5, 5)
        gate.set()
        await begun.until_done(5)
        await eventually(lambda: lag_is(broker, topic, 0))
    await worker.kill()


async def test_a_message_that_kills_its_process_gets_older_each_time(
    rabbitmq: RabbitMQServer, broker: Broker, topic: str
) -> None:
    await broker.declare(topic, groups=["g"])
    await broker.producer().publish(Message(topic, b"poison", key=b"k"))
    for _ in range(2):
        worker = await WorkerProcess.start(rabbitmq.url, topic, "g", hang_after=0)
        await eventually(lambda: worker.history.ids("began"), 20)  # noqa: B023
        await worker.kill()
    recorder = Recorder()
    async with broker.consumer(topic, group="g", handler=recorder):
        [message] = await recorder.until_done(1, 20)
    assert message.attempt == 3


async def test_what_a_consumer_gives_back_unbegun_is_no_attempt_for_the_others(
    rabbitmq: RabbitMQServer, topic: str
) -> None:
    hang = asyncio.Event()

    async def wait(_: Message) -> None:
        await hang.wait()

    url, other = f"{rabbitmq.url}?exclusive=true", Recorder()
    async with connect(url) as first, connect(url) as second:
        await first.declare(topic, groups=["g"])
        leaving = first.consumer(topic, group="g", handler=wait, max_in_flight=50, drain_timeout=0.1)
        await leaving.start()
        await first.producer().publish_batch([Message(topic, b"%d" % n, key=b"k") for n in range(20)])
        await eventually(lambda: leaving.health().in_flight == 20, 10)
        async with second.consumer(topic, group="g", handler=other):
            await leaving.stop()
            await other.until_done(20, 20)
    assert set(other.attempts) == {1}
    assert other.values == [b"%d" % n for n in range(20)]


async def lag_is(broker: Broker, topic: str, expected: int) -> bool:
    return await broker.lag(topic, "g") == expected


async def test_group_queues_have_the_arguments_that_the_url_asks_for(
    rabbitmq: RabbitMQServer, topic: str
) -> None:
    arguments = "x-max-length=1,x-overflow=reject-publish"
    async with connect(f"{rabbitmq.url}?arguments={arguments}") as small:
        await small.declare(topic, groups=["g"])
        producer = small.producer()
        with pytest.raises(PublishError, match="full"):  # noqa: PT012 - the queue lets a few more in
            for _ in range(50):
                await producer.publish(Message(topic, b"x"))


def test_arguments_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="x-max-length=1000"):
        connect("amqp://localhost/?arguments=x-max-length")


async def test_exclusive_groups_keep_order_across_processes_though_one_is_killed(
    rabbitmq: RabbitMQServer, topic: str
) -> None:
    url = f"{rabbitmq.url}?exclusive=true"
    async with connect(url) as broker:
        await broker.declare(topic, groups=["g"])
        messages = [Message(topic, b"x", key=b"k%d" % (n % 5), id=f"m{n}") for n in range(200)]
        await broker.producer().publish_batch(messages)
        workers = [
            await WorkerProcess.start(url, topic, "g", delay=0.002, max_in_flight=20) for _ in range(2)
        ]
        await eventually(lambda: len(workers[0].history.ids("done")) >= 30, 20)
        assert workers[1].history.events == []
        await workers[0].kill()

        def handled() -> set[str]:
            return {identity for worker in workers for identity in worker.history.ids("done")}

        await eventually(lambda: len(handled()) == 200, 30)
        await workers[1].stop()
    lanes: dict[object, list[str]] = {}
    for message in messages:
        lanes.setdefault(message.key, []).append(message.id or "")
    assert_lanes(merged(worker.history for worker in workers), lanes)
