"""Messages for later that a server from 2.12 on keeps."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("nats")

import msgspec
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

import nats
from things_kit import Broker, ConfigError, Message, UnsupportedError, connect
from things_kit.brokers.nats.schedules import Schedules
from things_kit.brokers.nats.shelves import Shelves
from things_kit.engine.collected import collect
from things_kit.engine.driver import Subscription
from things_kit.engine.wait_topics import CARRIER, DEAD_LETTER, LEASE, TOPIC, declare, wait_topics
from things_kit.messaging.schedule import LONGEST_ID
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.nats import NATSServer

nats_server = shared(NATSServer, "nats")
own_nats = own(NATSServer)

SOON = 0.5
HOUR = 3600.0


@pytest.fixture
async def broker(nats_server: NATSServer) -> AsyncIterator[Broker]:
    async with connect(nats_server.url) as opened:
        _needs_schedules(opened)
        yield opened


def _needs_schedules(broker: Broker) -> None:
    if not broker.capabilities.schedule_ids:
        pytest.skip("a server from 2.12 on")


def _values(messages: list[Message]) -> list[bytes]:
    return [message.value for message in messages]


# --- what is at the server


async def test_a_stream_is_changed_when_something_is_scheduled_first(
    broker: Broker, topic: str, stream: JetStreamContext
) -> None:
    await broker.declare(topic, groups=["billing"])
    before = await stream.stream_info(topic)
    assert before.config.subjects == [topic]
    await broker.producer().publish(Message(topic, b"v"), after=HOUR)
    after = await stream.stream_info(topic)
    assert after.config.subjects == [topic, f"tk-later.{topic}.>"]
    driver: Any = broker.transmission.driver
    assert [each for each in await driver.topics() if topic in each] == [topic]
    assert await broker.lag(topic, "never declared") == 0
    await broker.remove(topic)
    assert await broker.schedules(topic) == []
    assert topic not in [info.config.name for info in await stream.streams_info()]


async def test_topics_of_one_stream_keep_theirs_apart(broker: Broker, nats_server: NATSServer) -> None:
    name = f"shop-{uuid4().hex[:10]}"
    async with connect(f"{nats_server.url}?stream={name}") as shop:
        producer = shop.producer()
        for topic in (f"{name}.orders", f"{name}.refunds"):
            await producer.publish(Message(topic, topic.encode()), after=HOUR, schedule_id="a")
        await shop.remove(f"{name}.orders")
        assert await shop.schedules(f"{name}.orders") == []
        [left] = await shop.schedules(f"{name}.refunds")
        assert (left.schedule_id, left.message.topic) == ("a", f"{name}.refunds")
        await shop.remove(f"{name}.refunds")


async def test_a_message_arrives_with_nothing_of_the_schedule_in_it(broker: Broker, topic: str) -> None:
    recorder = Recorder()
    message = Message(topic, b"v", key=b"k", headers={"type": "reminder"}, id="m-1")
    async with broker.consumer(topic, group="billing", handler=recorder):
        await broker.producer().publish(message, after=SOON, schedule_id="a")
        [found] = await recorder.until_done(1, 10.0)
    assert (found.id, found.key, found.headers) == ("m-1", b"k", {"type": "reminder"})


@pytest.mark.parametrize(
    "name", ["a.b *.> c", "é/%41", "x" * (LONGEST_ID - 1)], ids=["subject", "script", "long"]
)
async def test_a_schedule_id_is_any_text(broker: Broker, topic: str, name: str) -> None:
    producer, longer = broker.producer(), name + "."
    for each in (name, longer):
        await producer.publish(Message(topic, each.encode()), after=HOUR, schedule_id=each)
    assert {each.schedule_id for each in await broker.schedules(topic)} == {name, longer}
    assert await broker.cancel(topic, name)
    assert [each.schedule_id for each in await broker.schedules(topic)] == [longer]


async def test_a_topic_that_somebody_removed_is_made_again_by_who_schedules(
    broker: Broker, topic: str, nats_server: NATSServer
) -> None:
    producer = broker.producer()
    await producer.publish(Message(topic, b"gone"), after=HOUR, schedule_id="a")
    async with connect(nats_server.url) as another:
        await another.remove(topic)
    await producer.publish(Message(topic, b"new"), after=HOUR, schedule_id="b")
    assert [each.message.value for each in await broker.schedules(topic)] == [b"new"]


# --- what cannot be kept


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"retention": "interest"}, "retention is 'interest'"),
        ({"discard": "new"}, "discard is 'new'"),
        ({"max_age": 60.0}, "keeps messages for 60 s"),
    ],
    ids=["interest", "discard", "age"],
)
async def test_a_stream_that_would_lose_it_refuses(
    broker: Broker, topic: str, stream: JetStreamContext, config: dict[str, Any], why: str
) -> None:
    await stream.add_stream(name=topic, subjects=[topic], **config)
    with pytest.raises(UnsupportedError, match=why):
        await broker.producer().publish(Message(topic, b"v"), after=HOUR)


async def test_a_consumer_without_a_filter_would_get_it_at_once(
    broker: Broker, topic: str, stream: JetStreamContext
) -> None:
    await broker.declare(topic)
    await stream.add_consumer(topic, ConsumerConfig(durable_name="all"))
    with pytest.raises(UnsupportedError, match="'all' has no filter"):
        await broker.producer().publish(Message(topic, b"v"), after=HOUR)


async def test_what_may_not_be_declared_and_what_no_clock_knows_is_refused(
    broker: Broker, topic: str, nats_server: NATSServer
) -> None:
    await broker.declare(topic)
    async with connect(f"{nats_server.url}?declare=false") as strict:
        with pytest.raises(ConfigError, match=r"declare=false: give it allow_msg_schedules and the subject"):
            await strict.producer().publish(Message(topic, b"v"), after=1)
    with pytest.raises(UnsupportedError, match="2262"):
        await broker.producer().publish(Message(topic, b"v"), at=datetime(2300, 1, 1, tzinfo=UTC))


# --- around its time


async def test_what_is_as_good_as_due_is_not_cancelled_and_comes(broker: Broker, topic: str) -> None:
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder):
        await broker.producer().publish(Message(topic, b"v"), after=0.2, schedule_id="a")
        assert await broker.cancel(topic, "a") is False
        assert _values(await recorder.until_done(1, 10.0)) == [b"v"]


async def test_what_is_as_good_as_due_is_not_replaced_and_both_come(broker: Broker, topic: str) -> None:
    recorder, producer = Recorder(), broker.producer()
    async with broker.consumer(topic, group="billing", handler=recorder):
        await producer.publish(Message(topic, b"old"), after=0.2, schedule_id="a")
        await producer.publish(Message(topic, b"new"), after=0.2, schedule_id="a")
        assert _values(await recorder.until_done(2, 10.0)) == [b"old", b"new"]


async def test_a_cancel_that_took_until_it_was_due_says_that_it_comes_and_it_does(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have taken it before it was deleted: nobody could say."""
    recorder = Recorder()

    async def late(shelves: Shelves, stream: str, seq: int) -> bool:
        done = await delete(shelves, stream, seq)
        await asyncio.sleep(SOON)
        return done

    delete = Shelves.delete
    monkeypatch.setattr(Shelves, "delete", late)
    async with broker.consumer(topic, group="billing", handler=recorder):
        await broker.producer().publish(Message(topic, b"v"), after=SOON, schedule_id="a")
        assert await broker.cancel(topic, "a") is False
        assert _values(await recorder.until_done(1, 10.0)) == [b"v"]


async def test_what_replaces_until_the_old_one_is_due_is_there_afterwards(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the old one takes away what is on its subject."""
    recorder, producer = Recorder(), broker.producer()
    await producer.publish(Message(topic, b"old"), after=SOON, schedule_id="a")

    async def late(schedules: Schedules, page: Any) -> Any:
        monkeypatch.setattr(Schedules, "_publish", publish)
        await asyncio.sleep(SOON + 0.3)  # it has come, and not because of this
        return await publish(schedules, page)

    publish: Callable[..., Any] = Schedules._publish
    monkeypatch.setattr(Schedules, "_publish", late)
    async with broker.consumer(topic, group="billing", handler=recorder):
        await producer.publish(Message(topic, b"new"), after=1.5, schedule_id="a")
        assert _values(await recorder.until_done(2, 10.0)) == [b"old", b"new"]


async def test_what_the_end_of_the_old_one_took_away_is_published_again(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server had taken the old one, and stored it only after what replaced it: that is confirmed, and gone."""
    recorder, producer = Recorder(), broker.producer()
    await producer.publish(Message(topic, b"old"), after=SOON, schedule_id="a")

    async def overtaken(schedules: Schedules, page: Any) -> Any:
        monkeypatch.setattr(Schedules, "_publish", publish)
        came = await publish(schedules, page)
        await asyncio.sleep(SOON)  # the old one's time is over
        await schedules._connection.ask(f"STREAM.PURGE.{topic}", filter=page[0][1][0])
        return came

    publish: Callable[..., Any] = Schedules._publish
    monkeypatch.setattr(Schedules, "_publish", overtaken)
    async with broker.consumer(topic, group="billing", handler=recorder):
        await producer.publish(Message(topic, b"new"), after=1.2, schedule_id="a")
        assert _values(await recorder.until_done(1, 10.0)) == [b"new"]


async def test_messages_for_later_outlive_the_server(own_nats: NATSServer) -> None:
    recorder = Recorder()
    async with connect(own_nats.url) as broker:
        _needs_schedules(broker)
        await broker.declare("orders", groups=["billing"])
        producer = broker.producer()
        await producer.publish_batch([Message("orders", b"%d" % n) for n in range(20)], after=1.0)
        await producer.publish(Message("orders", b"named"), after=1.3, schedule_id="a")
        far = datetime.now(UTC).replace(microsecond=0) + timedelta(days=400)
        await producer.publish(Message("orders", b"far"), at=far, schedule_id="b")
        await asyncio.to_thread(own_nats.kill)
        await asyncio.to_thread(own_nats.start)

        async def due() -> bool:
            return await broker.lag("orders", "billing") == 21

        await eventually(due, 20.0, "all that is due is there")
        async with broker.consumer("orders", group="billing", handler=recorder):
            found = await recorder.until_done(21, 10.0)
        assert _values(found) == [*(b"%d" % n for n in range(20)), b"named"]
        assert [(each.schedule_id, each.due) for each in await broker.schedules("orders")] == [("b", far)]


async def test_the_same_publish_sent_again_is_kept_once(broker: Broker, topic: str, client: Client) -> None:
    """A lost answer, after which the engine schedules it again."""
    driver: Any = broker.transmission.driver
    await broker.declare(topic, groups=["billing"])
    exchange, calls = driver._connection.exchange, 0

    async def lossy(outgoing: Any) -> Any:
        nonlocal calls
        came = await exchange(outgoing)
        calls += outgoing[0][0].startswith("tk-later.")
        if calls == 1 and outgoing[0][0].startswith("tk-later."):
            raise driver._connection.abandon("the answer is lost")
        return came

    driver._connection.exchange = lossy
    await broker.producer().publish(Message(topic, b"v"), after=HOUR)
    assert [each.message.value for each in await broker.schedules(topic)] == [b"v"]


async def test_what_waits_since_before_a_server_was_renewed_is_carried_on_and_deleted(
    nats_server: NATSServer,
) -> None:
    """Before 2.12 the engine carries; in a stream that keeps all, what has waited would stay for ever."""
    recorder, name = Recorder(), f"orders-{uuid4().hex[:10]}"
    url = f"{nats_server.url}?topic_prefix={name}-"
    async with connect(url) as before, connect(url) as broker:
        driver: Any = before.transmission.driver
        driver.capabilities = msgspec.structs.replace(
            driver.capabilities, schedule_ids=False, schedules=False
        )
        await before.declare("orders", groups=["billing"])
        await before.producer().publish(Message("orders", b"v"), after=0.3)
        async with broker.consumer("orders", group="billing", handler=recorder):
            await recorder.until_done(1, 20.0)
        client = await nats.connect(nats_server.url)

        async def deleted() -> bool:
            info = await client.jetstream().stream_info(f"{name}-things-kit-later-1s")
            return info.state.messages == 0

        await eventually(deleted, 10.0, "nothing is left of it where it waited")
        await client.close()
        for topic in ("orders", *wait_topics(partitions=False), DEAD_LETTER):
            await broker.remove(topic)


async def test_what_waits_is_leased_for_ten_seconds_whatever_the_lease_of_the_url(
    own_nats: NATSServer,
) -> None:
    """It is everybody's: a process whose own messages are leased for an hour is carried on for by others as soon as by any."""
    topic, client = f"{TOPIC}-1s", await nats.connect(own_nats.url)

    async def leases() -> list[float | None]:
        return [info.config.ack_wait for info in await client.jetstream().consumers_info(topic)]

    carrying = Subscription(topic=topic, group=CARRIER, create=False)
    async with connect(f"{own_nats.url}?lease=3600") as slow, connect(f"{own_nats.url}?lease=0.5") as quick:
        await declare(slow.transmission)
        assert await leases() == [LEASE]
        for broker in (quick, slow):
            receiver = await collect(broker.transmission.driver, carrying)
            assert await leases() == [LEASE]
            await receiver.close()
    await client.close()
