"""The Pub/Sub driver against a stand-in for the service: what the conformance suite does not ask."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("google.pubsub_v1")

import grpc
from google.api_core import exceptions
from google.protobuf import field_mask_pb2
from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient, types
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport

from things_kit import (
    BrokerUnavailable,
    ConfigError,
    Message,
    MessageTooLarge,
    NobodyListens,
    PublishError,
    RetryPolicy,
    UnsupportedError,
    connect,
)
from things_kit.brokers.pubsub import channel as channel_module
from things_kit.brokers.pubsub import publisher
from things_kit.brokers.pubsub.connection import Connection
from things_kit.brokers.pubsub.options import Settings
from things_kit.engine import watch
from things_kit.engine.broker import Broker
from things_kit.engine.collected import collect
from things_kit.engine.diagnosis import diagnose
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.engine.facts import Finding, Question
from things_kit.engine.url import BrokerURL
from things_kit.testing.conformance.history import History, assert_lanes
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.pubsub import PubSubServer, RunningPubSub, pubsub_url
from things_kit.testing.servers.relay import Relay

pubsub = shared(PubSubServer, "pubsub")
own_pubsub = own(PubSubServer)

PROJECT = "projects/things-kit"


class Admin:
    """Google's clients, for what somebody else does at the service."""

    def __init__(self, channel: Any) -> None:
        self.publisher = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
        self.subscriber = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))

    async def label_topic(self, topic: str, **labels: str) -> None:
        changed = types.Topic(name=f"{PROJECT}/topics/{topic}", labels=labels)
        await self.publisher.update_topic(
            topic=changed, update_mask=field_mask_pb2.FieldMask(paths=["labels"])
        )

    async def label_group(self, topic: str, group: str, **labels: str) -> None:
        changed = types.Subscription(name=path_of(topic, group), labels=labels)
        mask = field_mask_pb2.FieldMask(paths=["labels"])
        await self.subscriber.update_subscription(subscription=changed, update_mask=mask)

    async def subscription(self, topic: str, group: str) -> types.Subscription:
        return await self.subscriber.get_subscription(subscription=path_of(topic, group))

    async def pull(self, topic: str, group: str) -> list[bytes]:
        """What is there for the group at this moment."""
        return [each.message.data for each in await self.take(topic, group)]

    async def take(self, topic: str, group: str) -> list[Any]:
        """The same, to be settled."""
        pulled = await self.subscriber.pull(subscription=path_of(topic, group), max_messages=100)
        return list(pulled.received_messages)


def path_of(topic: str, group: str) -> str:
    return f"{PROJECT}/subscriptions/{topic}+{group}"


@pytest.fixture
async def admin(pubsub: PubSubServer) -> AsyncIterator[Admin]:
    async with grpc.aio.insecure_channel(pubsub.endpoint) as channel:
        yield Admin(channel)


@pytest.fixture
async def broker(pubsub: PubSubServer) -> AsyncIterator[Broker]:
    async with connect(pubsub.url) as broker:
        yield broker


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid4().hex[:10]}"


async def publish(broker: Broker, topic: str, *values: bytes, **fields: Any) -> None:
    producer = broker.producer()
    await producer.publish_batch([Message(topic, value, **fields) for value in values])
    await producer.close()


@asynccontextmanager
async def receiving(broker: Broker, topic: str, **fields: Any) -> AsyncIterator[Any]:
    """The driver's own receiver, without a consumer."""
    subscription = Subscription(topic=topic, group="billing", **fields)
    receiver = await collect(broker.transmission.driver, subscription)
    try:
        yield receiver
    finally:
        await receiver.close()


async def receive(receiver: Any, count: int) -> list[Delivery]:
    received: list[Delivery] = []
    async with asyncio.timeout(10):
        while len(received) < count:
            received += await receiver.receive(count - len(received), 5.0)
    return received


def values(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.message.value for delivery in deliveries]


# --- subscriptions


async def test_a_group_is_a_subscription_that_keeps_order_and_stays(
    broker: Broker, admin: Admin, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    found = await admin.subscription(topic, "billing")
    assert found.enable_message_ordering
    assert not found.enable_exactly_once_delivery
    assert not found.expiration_policy.ttl
    assert found.ack_deadline_seconds == 60
    assert found.message_retention_duration.total_seconds() == 7 * 86_400


async def test_options_reach_what_is_created(pubsub: PubSubServer, admin: Admin, topic: str) -> None:
    url = f"{pubsub.url}&exactly_once=true&retain=3600&expire=86400&lease=30&ordering=none"
    async with connect(url) as broker:
        await broker.declare(topic, groups=["billing"])
    found = await admin.subscription(topic, "billing")
    created = await admin.publisher.get_topic(topic=f"{PROJECT}/topics/{topic}")
    assert found.enable_exactly_once_delivery
    assert not found.enable_message_ordering
    assert found.ack_deadline_seconds == 30
    assert found.message_retention_duration.total_seconds() == 86_400
    assert created.message_retention_duration.total_seconds() == 3600


async def test_exactly_once_is_switched_on_for_a_group_that_there_is(
    pubsub: PubSubServer, broker: Broker, admin: Admin, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    async with connect(f"{pubsub.url}&exactly_once=true") as other:
        await other.declare(topic, groups=["billing"])
    assert (await admin.subscription(topic, "billing")).enable_exactly_once_delivery


async def test_an_ephemeral_group_is_gone_after_its_consumer(
    broker: Broker, admin: Admin, topic: str
) -> None:
    consumer = broker.consumer(topic, group=None, handler=print)
    await consumer.start()
    listed = await admin.publisher.list_topic_subscriptions(topic=f"{PROJECT}/topics/{topic}")
    [name] = [name async for name in listed]
    found = await admin.subscriber.get_subscription(subscription=name)
    assert found.expiration_policy.ttl.total_seconds() == 86_400
    await consumer.stop()
    with pytest.raises(exceptions.NotFound):
        await admin.subscriber.get_subscription(subscription=name)


async def test_an_ephemeral_group_outlives_a_lost_connection(
    broker: Broker, admin: Admin, topic: str
) -> None:
    """The engine comes back for it, and what is published meanwhile is kept."""
    await broker.declare(topic, groups=["mine"])
    await admin.label_group(topic, "mine", fault="unavailable")
    subscription = Subscription(topic=topic, group="mine", ephemeral=True)
    receiver = await collect(broker.transmission.driver, subscription)
    with pytest.raises(ConnectionLost):
        await receiver.receive(1, 5.0)
    await receiver.close()
    assert await admin.subscription(topic, "mine")


async def test_removing_leaves_subscriptions_of_others(broker: Broker, admin: Admin, topic: str) -> None:
    await broker.declare(topic, groups=["billing"])
    foreign = f"{PROJECT}/subscriptions/{topic}-archive"
    await admin.subscriber.create_subscription(name=foreign, topic=f"{PROJECT}/topics/{topic}")
    await broker.remove(topic)
    assert (await admin.subscriber.get_subscription(subscription=foreign)).topic == "_deleted-topic_"
    with pytest.raises(exceptions.NotFound):
        await admin.subscription(topic, "billing")


async def test_a_subscription_left_over_from_a_deleted_topic_is_made_anew(
    broker: Broker, admin: Admin, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    await admin.publisher.delete_topic(topic=f"{PROJECT}/topics/{topic}")
    await broker.declare(topic, groups=["billing"])
    await publish(broker, topic, b"x")
    assert await admin.pull(topic, "billing") == [b"x"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"enable_message_ordering": False}, "without message ordering"),
        (
            {"enable_message_ordering": True, "push_config": {"push_endpoint": "https://a.example"}},
            "somewhere else",
        ),
    ],
    ids=["unordered", "push"],
)
async def test_a_subscription_of_another_kind_is_refused_with_a_sentence(
    broker: Broker, admin: Admin, topic: str, fields: dict[str, Any], said: str
) -> None:
    await broker.declare(topic)
    await admin.subscriber.create_subscription(
        {"name": path_of(topic, "billing"), "topic": f"{PROJECT}/topics/{topic}", **fields}
    )
    with pytest.raises(ConfigError, match=said):
        await broker.consumer(topic, group="billing", handler=print).start()


async def test_without_declare_a_missing_group_is_a_sentence(pubsub: PubSubServer, topic: str) -> None:
    async with connect(f"{pubsub.url}&declare=false") as broker:
        with pytest.raises(ConfigError, match="declare it first"):
            await broker.consumer(topic, group="billing", handler=print).start()


async def test_no_order_and_a_consumer_that_wants_some_do_not_go_together(
    pubsub: PubSubServer, topic: str
) -> None:
    async with connect(f"{pubsub.url}&ordering=none") as broker:
        with pytest.raises(UnsupportedError, match="ordering=none keeps no order"):
            await broker.consumer(topic, group="billing", handler=print).start()
        recorder = Recorder()
        async with broker.consumer(topic, group="billing", handler=recorder, ordering="none"):
            await publish(broker, topic, b"1", b"2", key=b"k")
            await recorder.until_done(2, 10)
        assert {message.key for message in recorder.done} == {b"k"}


# --- publishing


async def test_a_batch_of_many_keys_is_in_order_and_complete(broker: Broker, topic: str) -> None:
    """More messages of a key, and more without, than a request takes."""
    await broker.declare(topic, groups=["billing"])
    sent = [Message(topic, b"%d" % n, key=(b"a", b"b", None)[n % 3]) for n in range(7000)]
    await broker.producer().publish_batch(sent)
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder, concurrency=4):
        await recorder.until_done(7000, 30)
    for key in (b"a", b"b"):
        got = [message.value for message in recorder.done if message.key == key]
        assert got == [message.value for message in sent if message.key == key]


async def test_many_keys_go_over_several_channels_each_in_order(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when some of the requests are lost: nothing of their keys is sent before all begins anew."""
    during, used = Connection.during, set[Any]()

    def losing(self: Connection, doing: str, **options: Any) -> Any:
        over = options.get("over")
        if over is not None and over not in used:
            used.add(over)
            if over is self.calls(2):
                raise ConnectionLost("the line is cut")
        return during(self, doing, **options)

    monkeypatch.setattr(Connection, "during", losing)
    monkeypatch.setattr(publisher, "SIDE_BY_SIDE", 10)
    await broker.declare(topic, groups=["billing"])
    sent = [Message(topic, b"%d" % n, key=b"k%d" % (n % 30)) for n in range(300)]
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder, concurrency=4):
        await broker.producer().publish_batch(sent)
        await eventually(lambda: {each.value for each in recorder.done} == {each.value for each in sent}, 20)
    assert len(used) == 3
    for key in {message.key for message in sent}:
        first = list(dict.fromkeys(each.value for each in recorder.done if each.key == key))
        assert first == [each.value for each in sent if each.key == key]


class Counting:
    """A connection whose service answers nothing until no more requests come; knows how many were under way over which channel."""

    def __init__(self) -> None:
        self.over: Counter[int] = Counter()
        self.most: Counter[int] = Counter()

    def calls(self, number: int) -> Any:
        async def publish(*_: Any, **__: Any) -> None:
            self.over[number] += 1
            self.most |= self.over
            await asyncio.sleep(0)
            self.over[number] -= 1

        return SimpleNamespace(publisher=SimpleNamespace(publish=publish))

    def during(self, *_: Any, **__: Any) -> Any:
        return nullcontext()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (20, [publisher.SIDE_BY_SIDE] * publisher.CHANNELS),
        (publisher.ROOM // 120, [publisher.SIDE_BY_SIDE, publisher.SIDE_BY_SIDE, 20]),
        (publisher.ROOM // 10, [publisher.SIDE_BY_SIDE]),
    ],
    ids=["small", "larger", "large"],
)
async def test_only_small_requests_go_over_many_channels(size: int, expected: list[int]) -> None:
    settings, connection = Settings.from_url(BrokerURL.parse("pubsub://p?endpoint=127.0.0.1:1")), Counting()
    value = bytes(size)
    sent = [Message("t", value, key=b"%d" % n, id="i", timestamp=datetime.now(UTC)) for n in range(500)]
    await publisher.Publication(connection, settings, sent).send()  # type: ignore[arg-type] # what it uses of one
    assert [connection.most[number] for number in sorted(connection.most)] == expected


def test_a_closed_connection_opens_no_more_channels() -> None:
    settings = Settings.from_url(BrokerURL.parse("pubsub://p?endpoint=127.0.0.1:1"))
    with pytest.raises(ConnectionLost):
        Connection(settings).calls(1)


async def test_one_message_that_the_service_refuses_harms_no_other(
    broker: Broker, admin: Admin, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    await admin.label_topic(topic, schema="bad")
    batch = [Message(topic, b"bad" if n in {3, 17} else b"good") for n in range(40)]
    with pytest.raises(PublishError) as raised:
        await broker.producer().publish_batch(batch)
    assert sorted(raised.value.failures) == [3, 17]
    assert await admin.pull(topic, "billing") == [b"good"] * 38


async def test_large_messages_go_in_several_requests_and_too_large_ones_are_refused(
    broker: Broker, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    large = Message(topic, b"x" * 6_000_000)
    with_headers = Message(topic, b"x" * 9_900_000, headers={f"h{n}": "ü" * 1000 for n in range(40)})
    with pytest.raises(PublishError) as raised:
        await broker.producer().publish_batch([large, large, with_headers])
    assert {index: type(error) for index, error in raised.value.failures.items()} == {2: MessageTooLarge}


async def test_a_used_up_quota_is_waited_out_and_a_key_goes_on_in_order(
    broker: Broker, admin: Admin, topic: str
) -> None:
    """The key of a publish that failed resumes where it was."""
    await broker.declare(topic, groups=["billing"])
    await admin.label_topic(topic, fault="resource_exhausted")
    publishing = asyncio.create_task(publish(broker, topic, *(b"%d" % n for n in range(10)), key=b"k"))
    await eventually(lambda: broker.transmission.away is not None, 10)
    assert "quota" in str(broker.transmission.away)
    await admin.label_topic(topic)
    await publishing
    assert await admin.pull(topic, "billing") == [b"%d" % n for n in range(10)]


async def test_a_quota_that_stays_used_up_is_said_in_the_end(
    pubsub: PubSubServer, admin: Admin, topic: str
) -> None:
    async with connect(f"{pubsub.url}&publish_timeout=0.5") as broker:
        await broker.declare(topic, groups=["billing"])
        await admin.label_topic(topic, fault="resource_exhausted")
        with pytest.raises(BrokerUnavailable, match="quota"):
            await broker.producer().publish(Message(topic, b"x"))


async def test_a_missing_right_is_said_with_what_helps(broker: Broker, admin: Admin, topic: str) -> None:
    await broker.declare(topic, groups=["billing"])
    await admin.label_topic(topic, fault="permission_denied")
    with pytest.raises(PublishError, match="need a role"):
        await broker.producer().publish(Message(topic, b"x"))
    await admin.label_group(topic, "billing", fault="permission_denied")
    consumer = broker.consumer(topic, group="billing", handler=print)
    await consumer.start()
    with pytest.raises(ConfigError, match="need a role"):
        await asyncio.wait_for(consumer.wait(), 10)
    await consumer.stop()


# --- topics that are deleted, and groups


async def until_published(producer: Any, message: Message) -> None:
    async def published() -> bool:
        try:
            await producer.publish(message)
        except NobodyListens:
            return False
        return True

    await eventually(published, 15, "somebody listens")


async def test_a_topic_that_was_deleted_is_made_anew_with_the_groups_of_this_process(
    broker: Broker, admin: Admin, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    producer = broker.producer()
    await producer.publish(Message(topic, b"1"))
    await admin.publisher.delete_topic(topic=f"{PROJECT}/topics/{topic}")
    await producer.publish(Message(topic, b"2"))
    assert await admin.pull(topic, "billing") == [b"2"]


async def test_a_consumer_goes_on_when_its_topic_is_made_anew(
    broker: Broker, admin: Admin, topic: str
) -> None:
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder):
        producer = broker.producer()
        await producer.publish(Message(topic, b"1"))
        await recorder.until_done(1, 10)
        await admin.publisher.delete_topic(topic=f"{PROJECT}/topics/{topic}")
        await until_published(producer, Message(topic, b"2"))
        await recorder.until_done(2, 10)


async def test_a_consumer_looks_whether_its_topic_was_made_anew_by_somebody_else(
    broker: Broker, pubsub: PubSubServer, admin: Admin, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "IDLE", 0.5)
    monkeypatch.setattr(watch, "LOOK", 0.2)
    recorder = Recorder()
    async with (
        broker.consumer(topic, group="billing", handler=recorder),
        connect(pubsub.url) as other,
    ):
        producer = other.producer()
        await producer.publish(Message(topic, b"1"))
        await recorder.until_done(1, 10)
        await admin.publisher.delete_topic(topic=f"{PROJECT}/topics/{topic}")
        await until_published(producer, Message(topic, b"2"))
        await recorder.until_done(2, 10)


async def test_nothing_is_confirmed_that_nobody_gets(broker: Broker, admin: Admin, topic: str) -> None:
    producer = broker.producer()
    with pytest.raises(NobodyListens):
        await producer.publish(Message(topic, b"x"))
    foreign = f"{PROJECT}/subscriptions/{topic}-archive"
    await admin.subscriber.create_subscription(name=foreign, topic=f"{PROJECT}/topics/{topic}")
    await producer.publish(Message(topic, b"x"))


async def test_a_topic_that_retains_keeps_messages_for_groups_to_come(
    pubsub: PubSubServer, topic: str
) -> None:
    async with connect(f"{pubsub.url}&retain=600") as broker:
        await publish(broker, topic, b"x")
        async with receiving(broker, topic) as receiver:
            assert values(await receive(receiver, 1)) == [b"x"]


async def test_a_group_is_removed_alone(broker: Broker, admin: Admin, topic: str) -> None:
    await broker.declare(topic, groups=["billing", "shipping"])
    driver: Any = broker.transmission.driver
    for _ in range(2):
        await driver.remove(topic, "billing")
    with pytest.raises(exceptions.NotFound):
        await admin.subscription(topic, "billing")
    assert await admin.subscription(topic, "shipping")


# --- streams and connections


async def test_a_stream_that_ends_leaves_no_task(pubsub: PubSubServer, topic: str) -> None:
    async with (
        Relay(pubsub.ports[0]) as relay,
        connect(pubsub.url) as broker,
        connect(f"{pubsub_url(f'127.0.0.1:{relay.port}')}&lease=1") as cut,
        receiving(cut, topic) as receiver,
    ):
        open_streams = []
        for value in (b"1", b"2", b"3", b"4"):
            await publish(broker, topic, value)
            [delivery] = await receive(receiver, 1)
            await receiver.settle([delivery], [])
            tasks = [task.get_coro() for task in asyncio.all_tasks()]
            open_streams.append(sum("_consume_request_iterator" in repr(task) for task in tasks))
            await relay.cut()
        assert open_streams == [1, 1, 1, 1]


async def test_a_connection_that_falls_silent_is_replaced(
    pubsub: PubSubServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "QUIET", 0.5)
    monkeypatch.setattr(channel_module, "ANSWER", 0.5)
    recorder = Recorder()
    async with (
        Relay(pubsub.ports[0]) as relay,
        connect(f"{pubsub_url(f'127.0.0.1:{relay.port}')}&lease=2") as broker,
        broker.consumer(topic, group="billing", handler=recorder),
    ):
        await publish(broker, topic, b"before")
        await recorder.until_done(1, 10)
        relay.half_open()
        await publish(broker, topic, b"under way")
        await recorder.until_done(2, 20)

        async def well() -> bool:
            return (await broker.health()).ok

        await eventually(well, 20, "health is good again")


async def test_who_waits_for_long_without_hearing_keeps_its_connection(
    pubsub: PubSubServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "QUIET", 0.1)
    async with (
        Relay(pubsub.ports[0]) as relay,
        connect(pubsub_url(f"127.0.0.1:{relay.port}")) as broker,
        receiving(broker, topic) as receiver,
    ):
        assert await receiver.receive(1, 1.0) == []
        connections = relay.connections
        assert await receiver.receive(1, 1.0) == []
        assert relay.connections == connections


# --- receiving and settling


async def test_the_service_sends_no_more_than_the_credit(own_pubsub: PubSubServer, topic: str) -> None:
    async with connect(own_pubsub.url) as broker:
        await broker.declare(topic, groups=["billing"])
        await publish(broker, topic, *(b"%d" % n for n in range(10)))
        async with receiving(broker, topic) as receiver:
            inbox, driven = receiver.inbox, receiver.receiver
            driven.credit(3)
            await eventually(lambda: len(inbox.waiting) == 3, 10)
            driven.credit(7)
            await eventually(lambda: len(inbox.waiting) == 7, 10)
            driven.credit(0)
            await driven.settle(inbox.take(7), [])
            driven.credit(2)
            await eventually(lambda: len(inbox.waiting) == 2, 10)
            await driven.quiesce()
            assert len(inbox.waiting) == 2


async def test_what_is_on_its_way_when_the_credit_changes_arrives(
    pubsub: PubSubServer, broker: Broker, topic: str
) -> None:
    """However slow the way is: from a stream that is cut off it would come only after its lease, a minute later."""
    async with Relay(pubsub.ports[0]) as relay, connect(pubsub_url(f"127.0.0.1:{relay.port}")) as far:
        await far.declare(topic, groups=["billing"])
        async with receiving(far, topic) as receiver:
            inbox, driven = receiver.inbox, receiver.receiver
            driven.credit(10)
            await publish(broker, topic, b"0")
            await eventually(lambda: len(inbox.waiting) == 1, 10, "the stream is there")
            relay.slow(1.2)
            await publish(broker, topic, b"1", b"2", b"3")
            driven.credit(20)
            await eventually(lambda: len(inbox.waiting) == 4, 20, "all have come")


async def test_what_waits_behind_a_running_handler_goes_back_after_it(
    broker: Broker, pubsub: PubSubServer, topic: str
) -> None:
    """Else another process handles the same key beside it."""
    history, gate = History(), Gate()
    async with connect(pubsub.url) as other:
        slow = Recorder(gate, history=history)
        first = broker.consumer(topic, group="billing", handler=slow, concurrency=3)
        await first.start()
        await publish(broker, topic, b"1", b"2", b"3", key=b"k")
        await eventually(lambda: first.health().in_flight == 3, 10, "all are here, two behind one")
        quick = Recorder(history=history)
        async with other.consumer(topic, group="billing", handler=quick):
            stopping = asyncio.create_task(first.stop())
            await publish(broker, topic, b"of another key", key=b"l")
            await quick.until_done(1, 10)
            gate.open()
            await stopping
            await quick.until_done(3, 10)
    assert slow.values == [b"1"]
    done = [event.id for event in history.events if event.kind == "done"]
    assert_lanes(history, {b"l": done[:1], b"k": done[1:]})


async def test_a_removed_subscription_of_a_running_consumer_is_made_anew(
    broker: Broker, admin: Admin, topic: str
) -> None:
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder):
        await publish(broker, topic, b"1")
        await recorder.until_done(1, 10)
        await admin.subscriber.delete_subscription(subscription=path_of(topic, "billing"))

        async def there() -> bool:
            try:
                await admin.subscription(topic, "billing")
            except exceptions.NotFound:
                return False
            return True

        await eventually(there, 10)
        await publish(broker, topic, b"2")
        await recorder.until_done(2, 10)


async def test_what_is_given_back_is_there_for_others_at_once(
    broker: Broker, admin: Admin, topic: str
) -> None:
    """It does not come back over the stream that it was given back from, while that one's handlers go on."""
    await broker.declare(topic, groups=["billing"])
    await publish(broker, topic, *(b"%d" % n for n in range(10)))
    async with receiving(broker, topic) as receiver:
        held = await receive(receiver, 10)
        await receiver.receiver.quiesce()
        await receiver.settle(held[:2], [Release(delivery) for delivery in held[2:]])
        assert sorted(await admin.pull(topic, "billing")) == sorted(values(held[2:]))


async def test_what_is_given_back_comes_again_in_order_to_whoever_receives_next(
    broker: Broker, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    await publish(broker, topic, *(b"%d" % n for n in range(5)), key=b"k")
    async with receiving(broker, topic) as receiver:
        held = await receive(receiver, 5)
        await receiver.settle(held[:1], [Release(delivery) for delivery in held[1:]])
        assert values(await receive(receiver, 4)) == [b"1", b"2", b"3", b"4"]


async def test_while_something_is_given_back_nothing_behind_it_is_handed_out(
    broker: Broker, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    await publish(broker, topic, *(b"%d" % n for n in range(20)), key=b"k")
    async with receiving(broker, topic) as receiver:
        held = await receive(receiver, 5)
        settling = asyncio.create_task(receiver.settle([], [Release(delivery) for delivery in held]))
        await asyncio.sleep(0)  # it has begun, and waits for the stream to end
        assert values(await receive(receiver, 20)) == [b"%d" % n for n in range(20)]
        await settling


async def test_closing_gives_back_what_was_taken_but_not_handed_out(
    broker: Broker, admin: Admin, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    await publish(broker, topic, *(b"%d" % n for n in range(50)))
    async with receiving(broker, topic) as receiver:
        assert len(await receive(receiver, 1)) == 1
    assert len(await admin.pull(topic, "billing")) == 50


async def test_a_message_that_comes_again_while_it_is_held_is_settled_once(
    pubsub: PubSubServer, admin: Admin, topic: str
) -> None:
    """Its lease ended, as after a pause of the process: it is not handled beside itself."""
    async with connect(f"{pubsub.url}&lease=1") as broker:
        await broker.declare(topic, groups=["billing"])
        await publish(broker, topic, b"x", key=b"k")
        async with receiving(broker, topic) as receiver:
            [held] = await receive(receiver, 1)
            ack_ids = receiver.receiver._held
            first = ack_ids[held.token]
            assert await receiver.receive(1, 0.2) == []
            await eventually(lambda: ack_ids[held.token] != first, 10, "it comes again")
            assert await receiver.receive(1, 0.0) == []
            await receiver.settle([held], [])
    assert await admin.pull(topic, "billing") == []


async def test_what_the_stream_did_not_bring_is_overdue_and_still_there_in_order(
    broker: Broker, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    async with receiving(broker, topic) as deaf, receiving(broker, topic) as other:
        assert await deaf.receiver.overdue() == 0
        await publish(broker, topic, b"1", b"2", key=b"k")
        assert await deaf.receiver.overdue() == 1
        came = await receive(other, 2)
        assert values(came) == [b"1", b"2"]
        assert await deaf.receiver.overdue() == 0, "what another holds is not overdue"
        await other.settle(came, [])


async def test_acknowledgements_are_repeated_until_exactly_once_delivery_confirms_them(
    pubsub: PubSubServer, admin: Admin, topic: str
) -> None:
    async with connect(f"{pubsub.url}&exactly_once=true") as broker:
        await broker.declare(topic, groups=["billing"])
        await admin.label_group(topic, "billing", fault="transient_ack")
        await publish(broker, topic, *(b"%d" % n for n in range(20)))
        async with receiving(broker, topic) as receiver:
            held = await receive(receiver, 20)
            ack_ids = list(receiver.receiver._held.values())
            await receiver.settle(held, [])
    with pytest.raises(exceptions.FailedPrecondition) as raised:  # nothing is left to be acknowledged
        await admin.subscriber.acknowledge(subscription=path_of(topic, "billing"), ack_ids=ack_ids)
    assert len(raised.value.metadata) == 20


async def test_what_expired_on_its_way_is_not_handed_out_under_exactly_once_delivery(
    pubsub: PubSubServer, admin: Admin, topic: str
) -> None:
    async with connect(f"{pubsub.url}&exactly_once=true") as broker:
        await broker.declare(topic, groups=["billing"])
        await admin.label_group(topic, "billing", fault="stale")
        await publish(broker, topic, b"x")
        async with receiving(broker, topic) as receiver:
            [held] = await receive(receiver, 1)
            assert receiver.receiver._held[held.token].endswith(":2"), (
                "the first delivery was not ours any more"
            )


async def test_a_lost_lease_is_passed_over_under_exactly_once_delivery(
    pubsub: PubSubServer, admin: Admin, topic: str
) -> None:
    """Somebody else has it, and its acknowledgement by us does not count."""
    async with connect(f"{pubsub.url}&exactly_once=true&lease=1") as broker:
        await broker.declare(topic, groups=["billing"])
        await publish(broker, topic, b"x")
        subscription = Subscription(topic=topic, group="billing", max_in_flight=1)
        receiver: Any = await collect(broker.transmission.driver, subscription)
        [held] = await receive(receiver, 1)
        await receiver.receiver.quiesce()
        other: list[Any] = []

        async def elsewhere() -> bool:
            other.extend(await admin.take(topic, "billing"))
            return bool(other)

        await eventually(elsewhere, 10, "somebody else gets it")
        await receiver.settle([held], [])
        await receiver.close()
    await admin.subscriber.modify_ack_deadline(
        subscription=path_of(topic, "billing"), ack_ids=[other[0].ack_id], ack_deadline_seconds=0
    )
    assert await admin.pull(topic, "billing") == [b"x"]


async def test_a_deliverys_attempt_is_what_the_service_counts_where_it_does(
    broker: Broker, admin: Admin, topic: str
) -> None:
    """It counts under a dead letter policy, which somebody else has set."""
    await broker.declare(topic)
    await admin.subscriber.create_subscription(
        {
            "name": path_of(topic, "billing"),
            "topic": f"{PROJECT}/topics/{topic}",
            "enable_message_ordering": True,
            "dead_letter_policy": {
                "dead_letter_topic": f"{PROJECT}/topics/{topic}",
                "max_delivery_attempts": 100,
            },
        }
    )
    await publish(broker, topic, b"x")
    async with receiving(broker, topic) as receiver:
        [first] = await receive(receiver, 1)
        await receiver.settle([], [Release(first)])
        [second] = await receive(receiver, 1)
    assert (first.message.attempt, second.message.attempt) == (1, 2)


async def test_the_stream_never_brings_more_than_may_be_held(
    broker: Broker, admin: Admin, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    await publish(broker, topic, *(b"%d" % n for n in range(50)))
    async with receiving(broker, topic, max_in_flight=10) as receiver:
        await receive(receiver, 10)
        assert len(await admin.pull(topic, "billing")) == 40


async def test_two_consumers_keep_the_order_of_each_key(
    pubsub: PubSubServer, broker: Broker, topic: str
) -> None:
    """The service gives the messages of a key to one of them at a time."""
    await broker.declare(topic, groups=["billing"])
    history, lanes = History(), dict[object, list[str]]()
    messages = [Message(topic, b"x", key=b"%d" % (n % 10), id=f"{n}") for n in range(500)]
    for message in messages:
        lanes.setdefault(message.key, []).append(str(message.id))

    async def act(message: Message) -> None:
        await asyncio.sleep(0.001)

    async with connect(pubsub.url) as other:
        consumers = [
            each.consumer(
                topic,
                group="billing",
                handler=Recorder(act, history=history),
                concurrency=4,
                max_in_flight=20,
            )
            for each in (broker, other)
        ]
        for consumer in consumers:
            await consumer.start()
        await broker.producer().publish_batch(messages)
        await eventually(lambda: len(set(history.ids("done"))) == 500, 20)
        await consumers[0].stop()
    assert_lanes(history, lanes)
    assert history.duplicates() == {}


# --- a server that dies


async def test_a_batch_that_a_kill_interrupts_is_complete_and_in_order(
    own_pubsub: PubSubServer, topic: str
) -> None:
    """What was sent twice has the same id; the first copies of each key are in order."""
    async with connect(f"{own_pubsub.url}&lease=2") as broker:
        await broker.declare(topic, groups=["billing"])
        sent = [Message(topic, b"%d" % n, key=b"%d" % (n % 100), id=f"{n}") for n in range(10_000)]
        publishing = asyncio.create_task(broker.producer().publish_batch(sent))
        recorder = Recorder()
        async with broker.consumer(topic, group="billing", handler=recorder, concurrency=8):
            await recorder.until_done(200, 20)
            await asyncio.to_thread(own_pubsub.kill)
            await asyncio.to_thread(own_pubsub.start)
            await asyncio.wait_for(publishing, 30)
            await eventually(lambda: len(recorder.ids) == 10_000, 60)
    for key in (b"0", b"99"):
        first = dict.fromkeys(message.value for message in recorder.done if message.key == key)
        assert list(first) == [message.value for message in sent if message.key == key]


async def test_a_stream_that_ends_is_opened_anew_without_a_message_coming_twice(
    own_pubsub: PubSubServer, topic: str
) -> None:
    """The service ends every stream after a while; what is in a handler then is still ours."""
    async with connect(own_pubsub.url) as broker:
        gate = Gate()
        recorder = Recorder(gate)
        policy = RetryPolicy(attempts=1)
        async with broker.consumer(topic, group="billing", handler=recorder, concurrency=2, retry=policy):
            await publish(broker, topic, b"1")
            await recorder.until_began(1, 10)
            own_pubsub.cut()
            await publish(broker, topic, b"2")
            await recorder.until_began(2, 10)
            gate.open()
            await recorder.until_done(2, 10)
        assert sorted(recorder.values) == [b"1", b"2"]
        assert recorder.history.duplicates() == {}


# --- doctor


async def findings(broker: Broker, **about: Any) -> list[Finding]:
    return await diagnose(broker, Question(**about))


def has(findings: list[Finding], level: str, subject: str, words: str) -> bool:
    return any(
        each.level == level and each.subject == subject and words in f"{each.what} {each.remedy}"
        for each in findings
    )


async def test_doctor_finds_nothing_wrong_with_what_we_made(broker: Broker, topic: str) -> None:
    consumer = broker.consumer(topic, group="billing", handler=print)
    await consumer.start()
    found = await findings(broker, topic=topic, group="billing")
    await consumer.stop()
    assert {each.level for each in found} == {"ok"}
    assert has(found, "ok", "group billing", f"{topic}+billing")


async def test_doctor_names_what_is_missing(pubsub: PubSubServer, broker: Broker, topic: str) -> None:
    assert has(await findings(broker, topic=topic), "warning", f"topic {topic}", "no such topic")
    async with connect(f"{pubsub.url}&declare=false") as strict:
        assert has(await findings(strict, topic=topic), "error", f"topic {topic}", "declare=false")
    await broker.declare(topic)
    await broker.declare(f"{topic}-dlq")
    found = await findings(broker, topic=topic, group="billing")
    assert has(found, "warning", f"topic {topic}", "drops what is published")
    assert has(found, "error", "group billing", "has no subscription")
    assert has(found, "error", f"dead letter {topic}-dlq", "dead-letters")


async def test_doctor_says_that_nobody_is_there() -> None:
    broker = connect("pubsub://things-kit?endpoint=127.0.0.1:1&publish_timeout=0.3")
    [finding] = await findings(broker)
    await broker.close()
    assert finding.level == "error"


async def test_a_pub_sub_for_tests_of_users_can_be_had(pubsub_container: RunningPubSub, topic: str) -> None:
    recorder = Recorder()
    async with (
        connect(pubsub_container.url) as broker,
        broker.consumer(topic, group="billing", handler=recorder),
    ):
        await publish(broker, topic, b"x")
        await recorder.until_done(1, 10)
