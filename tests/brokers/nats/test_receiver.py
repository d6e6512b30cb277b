"""Receiving from NATS: what waits here keeps its lease, and how a group is found and judged."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("nats")

from nats.aio.client import Client
from nats.js import JetStreamContext

import nats
from things_kit import Broker, ConfigError, Message, PublishError, connect
from things_kit.brokers.nats import connection
from things_kit.brokers.nats.admin import wrong_kind
from things_kit.brokers.nats.errors import ERRORS, OPENING, NoResponders, Refusal, Refused
from things_kit.brokers.nats.options import LONGEST, durable_names
from things_kit.engine.collected import Collecting, collect
from things_kit.engine.driver import ConnectionLost, Delivery, Fetching, Marking, Release, Subscription
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.relay import Relay

nats_server = shared(NATSServer, "nats")
own_nats = own(NATSServer)

LEASE = 0.6


@pytest.fixture
async def broker(nats_server: NATSServer) -> AsyncIterator[Broker]:
    async with connect(f"{nats_server.url}?lease={LEASE}") as broker:
        yield broker


def marking(receiver: Collecting) -> Marking:
    """The receiver that keeps marks."""
    assert isinstance(receiver.receiver, Marking)
    return receiver.receiver


async def received(receiver: Collecting, count: int) -> list[Delivery]:
    """So many deliveries."""
    deliveries: list[Delivery] = []
    async with asyncio.timeout(10):
        while len(deliveries) < count:
            deliveries += await receiver.receive(count - len(deliveries), 5)
    return deliveries


# --- what waits here


async def _asked(stream: JetStreamContext, topic: str) -> bool:
    return bool((await stream.consumer_info(topic, "g")).num_waiting)


async def test_what_has_arrived_and_waits_for_its_turn_is_leased_as_well(
    broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    driver, subscription = broker.transmission.driver, Subscription(topic=topic, group="g")
    slow, other = await collect(driver, subscription), await collect(driver, subscription)
    assert isinstance(slow.receiver, Fetching)
    asked = asyncio.create_task(slow.receiver.fetch(20, 5))
    await eventually(lambda: _asked(stream, topic), 5)
    asked.cancel()
    await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(20)])
    while (waiting := len(slow.inbox.waiting)) < 20:  # the request ended with what there was when it was seen
        await slow.receiver.fetch(20 - waiting, 5)
    first = slow.inbox.take(1)

    async def keep() -> None:
        while True:
            await slow.extend(first)
            await asyncio.sleep(LEASE / 3)

    keeping = asyncio.create_task(keep())
    assert not await other.receive(100, 3 * LEASE), "nobody else gets what is extended"
    keeping.cancel()
    came = first + await received(slow, 19)
    assert [each.message.attempt for each in came] == [1] * 20
    await slow.settle(came, [])
    await slow.close()
    await other.close()
    assert await broker.lag(topic, "g") == 0


async def test_no_more_is_taken_from_the_server_than_was_asked_for(
    broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    receiver = await collect(broker.transmission.driver, Subscription(topic=topic, group="g"))
    await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(200)])
    for limit in (1, 2, 10, 3):
        came = await received(receiver, limit)
        taken = (await stream.consumer_info(topic, "g")).num_ack_pending
        assert taken == limit, "all that the server handed out was asked for"
        await receiver.settle(came, [])
    await receiver.close()


async def test_what_nobody_was_handed_is_overdue(broker: Broker, topic: str) -> None:
    collecting = await collect(broker.transmission.driver, Subscription(topic=topic, group="g"))
    assert await collecting.receiver.overdue() == 0
    await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(3)])

    async def all_are_overdue() -> bool:  # a server of 2.15 counts them a moment after it has confirmed them
        return await collecting.receiver.overdue() == 3

    await eventually(all_are_overdue)
    await received(collecting, 3)
    assert await collecting.receiver.overdue() == 0, "what is held is nobody else's"
    await collecting.close()


# --- attempts


async def test_a_stop_counts_for_nobody_and_a_dead_process_after_it_counts_once(
    broker: Broker, topic: str
) -> None:
    driver, subscription = broker.transmission.driver, Subscription(topic=topic, group="g")
    await broker.producer().publish(Message(topic, b"x"))
    for _ in range(3):
        stopped = await collect(driver, subscription)
        [given_back] = await received(stopped, 1)
        assert given_back.message.attempt == 1
        await stopped.close()
    dead = await collect(driver, subscription)
    assert [each.message.attempt for each in await received(dead, 1)] == [1]
    heir = await collect(driver, subscription)
    [after_the_lease] = await received(heir, 1)
    assert after_the_lease.message.attempt == 2
    await heir.settle([after_the_lease], [])
    await heir.close()
    await dead.close()


async def test_a_receiver_that_closes_in_the_middle_of_an_answer_leaves_no_delivery_uncounted_for(
    nats_server: NATSServer, stream: JetStreamContext
) -> None:
    """A server of 2.9 counts what it was about to send when the request went: it must have sent it before."""
    topic = f"orders-{uuid4().hex[:10]}"
    async with connect(f"{nats_server.url}?lease=3600") as broker:
        driver, subscription = broker.transmission.driver, Subscription(topic=topic, group="g")
        await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(50)])
        for turn in range(1, 20):
            closing = await collect(driver, subscription)
            came = await closing.receive(50, 10)
            assert {each.message.attempt for each in came} == {1}, f"after {turn} turns"
            await closing.close()
        await broker.remove(topic)


async def test_a_mark_comes_again_with_what_a_dead_process_had_and_goes_with_an_outcome(
    broker: Broker, topic: str
) -> None:
    driver, subscription = broker.transmission.driver, Subscription(topic=topic, group="g")
    await broker.producer().publish(Message(topic, b"x"))
    dead, heir = await collect(driver, subscription), await collect(driver, subscription)
    [suspect] = await received(dead, 1)
    await marking(dead).mark(suspect, 1)
    [again] = await received(heir, 1)
    assert (again.message.attempt, again.suspect) == (2, 1)
    await heir.settle([], [Release(again, attempt=3)])
    [failed] = await received(heir, 1)
    assert (failed.message.attempt, failed.suspect) == (3, 0)
    await marking(heir).mark(failed, 3)
    await marking(heir).mark(failed, 0)
    [stopped] = await received(heir, 1)
    assert (stopped.message.attempt, stopped.suspect) == (4, 0), "a stop took it back"
    await heir.settle([stopped], [])
    await heir.close()
    await dead.close()


# --- order


async def test_what_is_given_back_again_and_again_comes_in_order(broker: Broker, topic: str) -> None:
    driver, subscription = broker.transmission.driver, Subscription(topic=topic, group="g")
    await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(150)])
    for count in (150, 5, 80, 3):
        stopping = await collect(driver, subscription)
        came = await received(stopping, count)
        assert [int(each.message.value) for each in came] == list(range(count))
        assert {each.message.attempt for each in came} == {1}
        await stopping.close()


async def test_a_settlement_that_was_cut_short_does_not_disturb_the_order(own_nats: NATSServer) -> None:
    topic = f"orders-{uuid4().hex[:10]}"
    client = await nats.connect(own_nats.url)
    async with Relay(own_nats.ports[0]) as relay, connect(f"nats://127.0.0.1:{relay.port}") as broker:
        driver, subscription = broker.transmission.driver, Subscription(topic=topic, group="g")
        await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(20)])
        stopping = await collect(driver, subscription)
        await received(stopping, 20)
        await stopping.close()
        cut_short = await collect(driver, subscription)
        came = await received(cut_short, 18)
        relay.slow(0.5)
        settling = asyncio.create_task(cut_short.settle(came[:5], []))

        async def acknowledged() -> bool:
            return bool((await client.jetstream().consumer_info(topic, "g")).num_ack_pending == 15)

        await eventually(acknowledged, 5)
        settling.cancel()
        await asyncio.wait({settling})
        relay.slow(0)
        await cut_short.close()
        heir = await collect(driver, subscription)
        came = await received(heir, 3)
        assert [int(each.message.value) for each in came] == [5, 6, 7]
        await heir.close()
    await client.close()


async def test_what_a_lost_connection_left_behind_comes_before_what_was_given_back_earlier(
    own_nats: NATSServer,
) -> None:
    topic = f"orders-{uuid4().hex[:10]}"
    async with (
        Relay(own_nats.ports[0]) as relay,
        connect(f"nats://127.0.0.1:{relay.port}?lease=60") as broker,
    ):
        driver, subscription = broker.transmission.driver, Subscription(topic=topic, group="g")
        await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(20)])
        stopping = await collect(driver, subscription)
        await received(stopping, 20)
        await stopping.close()
        losing = await collect(driver, subscription)
        await received(losing, 5)
        await relay.cut()
        with pytest.raises(ConnectionLost):
            await losing.receiver.overdue()
        with pytest.raises(ConnectionLost):
            await losing.receiver.close()
        heir = await collect(driver, subscription)
        came = await received(heir, 10)
        assert [int(each.message.value) for each in came] == list(range(10))
        await heir.close()


# --- several topics in one stream


async def test_several_topics_of_one_stream_have_one_group_each(
    nats_server: NATSServer, stream: JetStreamContext
) -> None:
    name = f"all-{uuid4().hex[:10]}"
    topics = [name, f"{name}.created", f"{name}.cancelled"]
    async with connect(f"{nats_server.url}?stream={name}-stream") as broker:
        for run in range(2):
            seen = Recorder()
            async with broker.consumer(topics, group="billing", handler=seen, dead_letter=None):
                await broker.producer().publish_batch(
                    [Message(topic, b"%d" % run) for topic in topics for _ in range(5)]
                )
                await seen.until_done(15, 10)
            assert sorted(each.topic for each in seen.done) == sorted(topics * 5)
            assert set(seen.values) == {b"%d" % run}, "the group goes on where it was"
        assert [await broker.lag(topic, "billing") for topic in topics] == [0, 0, 0]
        await broker.remove(topics[1])
        assert len(await stream.consumers_info(f"{name}-stream")) == 2
    await stream.delete_stream(f"{name}-stream")


async def test_a_consumer_that_has_the_name_of_the_group_alone_is_found_again(
    broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    """As an operator creates it, or did this driver once."""
    shared_stream = f"{topic}-all"
    await stream.add_stream(name=shared_stream, subjects=[f"{topic}.*"])
    await stream.add_consumer(
        shared_stream, durable_name="g", filter_subject=f"{topic}.a", ack_policy="explicit"
    )
    seen = Recorder()
    async with broker.consumer([f"{topic}.a", f"{topic}.b"], group="g", handler=seen, dead_letter=None):
        await broker.producer().publish_batch([Message(f"{topic}.a", b"a"), Message(f"{topic}.b", b"b")])
        await seen.until_done(2, 10)
        names = {info.name for info in await stream.consumers_info(shared_stream)}
    assert names == {"g", durable_names(shared_stream, f"{topic}.b", "g")[-1]}
    await stream.delete_stream(shared_stream)


async def test_a_consumer_of_the_group_s_name_that_receives_other_topics_as_well_is_refused(
    broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    shared_stream = f"{topic}-all"
    await stream.add_stream(name=shared_stream, subjects=[f"{topic}.*"])
    await stream.add_consumer(
        shared_stream, durable_name="g", filter_subject=f"{topic}.>", ack_policy="explicit"
    )
    with pytest.raises(ConfigError, match=f"receives {topic}.>, not {topic}.a"):
        await broker.consumer(f"{topic}.a", group="g", handler=Recorder(), dead_letter=None).start()
    await stream.delete_stream(shared_stream)


def test_no_two_groups_of_a_stream_have_one_consumer() -> None:
    words = ["a", "b", "a=tb", "b=ta", "a.b", "é", "x" * LONGEST, "x" * 200, "x" * 201]
    names = [durable_names("s", topic, group)[-1] for topic in words for group in words]
    plain = [durable_names("s", topic, group)[0] for topic in words[:1] for group in words]
    assert len({*names, *plain}) == len(names) + len(plain)
    assert max(map(len, names)) < 255
    assert durable_names("a=2Eb", "a.b", "g") == ("g",), "a stream of its own has no other topics"


# --- consumers of another kind


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"deliver_subject": "x"}, "push consumer"),
        ({"ack_policy": "none"}, "ack_policy 'none'"),
        ({"ack_policy": "all"}, "ack_policy 'all'"),
        ({"priority_groups": ["a"], "priority_policy": "overflow"}, "priority groups"),
        ({"priority_groups": ["a"], "priority_policy": "pinned_client"}, "priority groups"),
        ({"headers_only": True}, "without their values"),
        ({"max_deliver": 5}, "gives a message up after 5 deliveries"),
        ({"filter_subjects": ["t", "u"]}, "receives t, u, not t"),
    ],
)
def test_a_consumer_as_which_a_group_cannot_receive_is_told_apart(config: dict[str, Any], said: str) -> None:
    assert said in (wrong_kind({"ack_policy": "explicit", **config}, "t") or "")


def test_a_consumer_as_operators_make_them_is_fine() -> None:
    plain = {"ack_policy": "explicit", "filter_subject": "t", "max_deliver": -1, "priority_policy": "none"}
    assert wrong_kind(plain, "t") is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"headers_only": True}, "headers_only"), ({"max_deliver": 3}, "after 3 deliveries")],
    ids=["headers", "deliveries"],
)
async def test_a_consumer_of_another_kind_is_refused_in_one_sentence(
    broker: Broker, stream: JetStreamContext, topic: str, settings: dict[str, Any], said: str
) -> None:
    await broker.declare(topic)
    await stream.add_consumer(
        topic, durable_name="g", filter_subject=topic, ack_policy="explicit", **settings
    )
    with pytest.raises(ConfigError, match=said) as raised:
        await broker.consumer(topic, group="g", handler=Recorder(), dead_letter=None).start()
    assert "\n" not in str(raised.value)


async def test_a_consumer_with_priority_groups_is_refused(
    broker: Broker, client: Client, stream: JetStreamContext, topic: str
) -> None:
    """It answers each request without a group at once with an error, so one would ask again and again."""
    if client.connected_server_version.minor < 11:
        pytest.skip("priority groups came with 2.11")
    await broker.declare(topic)
    config = {
        "durable_name": "g", "filter_subject": topic, "ack_policy": "explicit",
        "priority_groups": ["a"], "priority_policy": "overflow",
    }  # fmt: skip
    question = json.dumps({"stream_name": topic, "config": config}).encode()
    answer = await client.request(f"$JS.API.CONSUMER.CREATE.{topic}.g.{topic}", question, timeout=5)
    assert b'"priority_groups"' in answer.data
    with pytest.raises(ConfigError, match="priority groups"):
        await broker.consumer(topic, group="g", handler=Recorder(), dead_letter=None).start()


# --- what others publish


@pytest.mark.parametrize(
    "head",
    [b"NATS/1.0", b"NATS/1.0 \xff\xfe\xff\r\n\r\n", b"NATS/1.0 404 \xff\r\n\r\n", b"\xff" * 12, b"NATS/1.0\r\n\xff: x\r\nno colon\r\na b: c\r\n\r\n"],
    ids=["no-line", "status", "description", "rubbish", "names"],
)  # fmt: skip
async def test_a_message_whose_headers_nobody_can_read_does_not_stop_its_group(
    nats_server: NATSServer, broker: Broker, topic: str, head: bytes
) -> None:
    """Nor the others that share the connection."""
    await broker.declare(topic, ["g"])
    reader, writer = await asyncio.open_connection("127.0.0.1", nats_server.ports[0])
    writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
    writer.write(b"HPUB %s %d %d\r\n%svalue\r\nPING\r\n" % (topic.encode(), len(head), len(head) + 5, head))
    async with asyncio.timeout(5):
        while await reader.readline() != b"PONG\r\n":
            pass
    writer.close()
    seen = Recorder()
    async with broker.consumer(topic, group="g", handler=seen, dead_letter=None):
        await broker.producer().publish(Message(topic, b"after", headers={"a": "b"}))
        await seen.until_done(2, 5)
    strange, after = seen.done
    assert (strange.value, strange.id) == (b"value", f"{topic}-1")
    assert (after.value, after.headers) == (b"after", {"a": "b"})


# --- what the server loses


async def test_what_was_acknowledged_of_a_lost_stream_acknowledges_nothing_of_the_new_one(
    own_nats: NATSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first message has the number of one whose acknowledgement nobody had confirmed."""
    subscription = Subscription(topic="orders", group="g")
    async with connect(f"{own_nats.url}?lease=3600") as broker, connect(own_nats.url) as other:
        await broker.producer().publish(Message("orders", b"old"))
        before = await collect(broker.transmission.driver, subscription)
        old = await received(before, 1)
        await asyncio.to_thread(own_nats.pause)
        with monkeypatch.context() as brief:
            brief.setattr(connection, "ANSWER", 0.3)
            with pytest.raises(ConnectionLost):
                await before.settle(old, [])
            with pytest.raises(ConnectionLost):
                await before.close()
        await asyncio.to_thread(own_nats.resume)
        await other.remove("orders")
        await other.producer().publish(Message("orders", b"new"))
        elsewhere = await collect(other.transmission.driver, subscription)
        await received(elsewhere, 1)
        after = await collect(broker.transmission.driver, subscription)
        assert await other.lag("orders", "g") == 1
        await elsewhere.close()
        await after.close()
        await other.remove("orders")


# --- errors, and groups that are removed


@pytest.mark.parametrize(
    ("error", "ours", "said"),
    [
        (Refused(Refusal(400, 10065, "subjects overlap")), ConfigError, "another stream takes a part"),
        (Refused(Refusal(400, 99_999, "what is that")), ConfigError, "what is that"),
        (
            Refused(Refusal(503, 10008, "JetStream system temporarily unavailable")),
            ConnectionLost,
            "temporarily",
        ),
        (Refused(Refusal(404, 10059, "stream not found")), ConnectionLost, "stream not found"),
        (Refused(Refusal(500, 99_999, "nobody has heard of it")), ConnectionLost, "nobody has heard of it"),
        (NoResponders(), ConnectionLost, "nobody answers"),
        (nats.errors.OutboundBufferLimitError(), ConnectionLost, "limit"),
        (RuntimeError("a fault in the client"), ConnectionLost, "a fault in the client"),
    ],
)
def test_what_nobody_knows_is_an_outage_and_ends_no_consumer(
    error: Exception, ours: type[Exception], said: str
) -> None:
    translated = ERRORS.translate(error, "asking")
    assert type(translated) is ours
    assert said in str(translated)
    assert type(ERRORS.refusal(error, "orders")) is (PublishError if ours is ConfigError else ConnectionLost)


def test_only_who_connects_is_told_how_jetstream_is_started() -> None:
    assert isinstance(OPENING.translate(NoResponders(), "asking"), ConfigError)


async def test_a_group_is_removed_alone(broker: Broker, stream: JetStreamContext, topic: str) -> None:
    driver: Any = broker.transmission.driver
    await broker.declare(topic, groups=["a", "b"])
    await broker.producer().publish(Message(topic, b"x"))
    for _ in range(2):
        await driver.remove(topic, "a")
    await driver.remove(f"{topic}-missing", "a")
    assert [info.name for info in await stream.consumers_info(topic)] == ["b"]
    assert await broker.lag(topic, "b") == 1
