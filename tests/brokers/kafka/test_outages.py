"""A Kafka that stands still, dies, or falls silent, and what becomes of groups and of those who wait for it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import TopicPartition

from things_kit import Broker, BrokerUnavailable, Message, connect
from things_kit.brokers.kafka import receiver
from things_kit.engine.wait_topics import DEAD_LETTER, TOPIC
from things_kit.testing.conformance.steady import Pulse
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.fixtures import own, unavailable
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.process import free_ports
from things_kit.testing.servers.relay import Relay

PATIENCE = 60.0

kafka = own(KafkaServer)


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid4().hex[:10]}"


@pytest.fixture
def frozen_never_stays(kafka: KafkaServer) -> Iterator[None]:
    yield
    kafka.resume()


class Handler:
    """Notes the ids that it was given."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    async def handle(self, message: Message) -> None:
        self.ids.append(message.id or "")


async def published(broker: Broker, topic: str, count: int, after: float | None = None) -> set[str]:
    """Publish so many, and say their ids."""
    messages = [Message(topic, b"x", id=uuid4().hex) for _ in range(count)]
    await broker.producer().publish_batch(messages, after=after)
    return {message.id or "" for message in messages}


async def all_arrive(handlers: list[Handler], ids: set[str]) -> None:
    await eventually(lambda: ids <= {id_ for handler in handlers for id_ in handler.ids}, PATIENCE)


async def test_groups_go_on_after_a_broker_stood_still_for_longer_than_their_session(
    kafka: KafkaServer, topic: str, frozen_never_stays: None
) -> None:
    """Again and again, with commits under way and members without a partition."""
    async with connect(f"{kafka.url}?session_timeout=3&partitions=2&commit_interval=0") as broker:
        groups: list[list[Handler]] = [[Handler() for _ in range(3)], [Handler()]]
        for number, handlers in enumerate(groups):
            for handler in handlers:
                await broker.consumer(topic, group=f"{topic}-{number}", handler=handler).start()
        for _ in range(3):
            ids = await published(broker, topic, 100)
            await asyncio.to_thread(kafka.pause)
            await asyncio.sleep(4.5)
            kafka.resume()
            ids |= await published(broker, topic, 100)
            for handlers in groups:
                await all_arrive(handlers, ids)


async def test_groups_go_on_after_their_broker_was_killed(kafka: KafkaServer, topic: str) -> None:
    """So does what carries on the messages that it was to keep until later."""
    async with connect(f"{kafka.url}?session_timeout=3&partitions=2") as broker:
        handler = Handler()
        async with broker.consumer(topic, group=topic, handler=handler):
            await all_arrive([handler], await published(broker, topic, 20))
            later = await published(broker, topic, 20, after=3.0)
            await asyncio.to_thread(kafka.kill)
            await asyncio.sleep(4)
            await asyncio.to_thread(kafka.start)
            await all_arrive([handler], later | await published(broker, topic, 20))
        for waits in (TOPIC, DEAD_LETTER):
            await broker.remove(waits)  # else all others here would carry too


@pytest.mark.parametrize("fault", ["frozen", "killed"])
async def test_stopping_and_closing_end_in_time_without_a_broker(
    topic: str, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    with KafkaServer() as server:
        broker = connect(f"{server.url}?session_timeout=6")
        await broker.open()
        handler = Handler()
        consumer = broker.consumer(topic, group=topic, handler=handler, drain_timeout=1)
        await consumer.start()
        await all_arrive([handler], await published(broker, topic, 20))
        await asyncio.to_thread(server.pause if fault == "frozen" else server.kill)
        asked = [asyncio.create_task(broker.lag(topic, topic)), asyncio.create_task(broker.declare(topic))]
        await asyncio.sleep(0.1)
        for ending, within in ((consumer.stop, 1 + 5), (broker.close, 4)):
            with Pulse() as pulse:
                await ending()
            assert pulse.ran < within
        for each in asked:
            each.cancel()
        await asyncio.wait(asked, timeout=1)
        assert all(each.done() for each in asked), "a question cannot be given up"
        if fault == "frozen":
            server.resume()


async def test_a_broker_that_cannot_be_reached_is_said_so_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "things_kit")
    (port,) = free_ports(1)
    with pytest.raises(BrokerUnavailable, match="Connection refused"):
        async with connect(f"kafka://127.0.0.1:{port}?publish_timeout=2"):
            pass
    assert "Connection refused" in caplog.text


async def test_a_host_that_nobody_knows_is_said_so_at_once() -> None:
    with pytest.raises(BrokerUnavailable, match="resolve"):
        async with connect("kafka://nowhere.invalid:9092?publish_timeout=2"):
            pass


async def test_an_outage_while_consuming_is_said_so(
    kafka: KafkaServer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "things_kit")
    async with connect(kafka.url) as broker, broker.consumer(topic, group=topic, handler=Handler()):
        await asyncio.to_thread(kafka.kill)
        try:
            await eventually(lambda: "the broker does not answer" in caplog.text, 10)

            async def ill() -> bool:
                health = await broker.health()
                return not health.ok and any("does not answer" in (c.reason or "") for c in health.consumers)

            await eventually(ill, 10)
        finally:
            await asyncio.to_thread(kafka.start)

        async def well() -> bool:
            return (await broker.health()).ok

        await eventually(well, PATIENCE)


# --- connections that fall silent


@pytest.fixture
async def relayed() -> AsyncIterator[tuple[Relay, str]]:
    """A Kafka that tells its clients to come through a relay."""
    ports = free_ports(4)
    properties = {
        "listeners": f"PLAINTEXT://127.0.0.1:{ports[0]},CONTROLLER://127.0.0.1:{ports[1]}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{ports[3]}",
    }
    server = KafkaServer(ports=ports[:3], properties=properties)
    async with Relay(ports[0], ports[3]) as relay:
        try:
            await asyncio.to_thread(server.start)
        except ServerUnavailable as reason:
            unavailable(reason)
        try:
            yield relay, f"kafka://127.0.0.1:{ports[3]}"
        finally:
            await asyncio.to_thread(server.terminate)


async def test_connections_that_fall_silent_are_replaced_and_what_was_under_way_goes_through(
    relayed: tuple[Relay, str], topic: str
) -> None:
    relay, url = relayed
    async with connect(url) as broker:
        handler = Handler()
        async with broker.consumer(topic, group=topic, handler=handler):
            await all_arrive([handler], await published(broker, topic, 20))
            silent_since = time.monotonic()
            relay.half_open()
            publishing = asyncio.create_task(published(broker, topic, 20))

            async def ill() -> bool:
                return not (await broker.health()).ok

            await eventually(ill, 15)
            await all_arrive([handler], await publishing)
            assert time.monotonic() - silent_since < 30
            assert await broker.lag(topic, group="nobody") == 40, "something is in the topic twice"
            await eventually_well(broker)


async def eventually_well(broker: Broker) -> None:
    async def well() -> bool:
        return (await broker.health()).ok

    await eventually(well, PATIENCE)


# --- topics that go and come


async def test_a_topic_that_is_made_anew_is_read_from_its_beginning(kafka: KafkaServer, topic: str) -> None:
    async with connect(f"{kafka.url}?partitions=1&session_timeout=3") as broker:
        handler = Handler()
        async with broker.consumer(topic, group=topic, handler=handler, dead_letter=None):
            await all_arrive([handler], await published(broker, topic, 50))
            await broker.remove(topic)
            await broker.declare(topic)
            await all_arrive([handler], await published(broker, topic, 200))  # beyond the old position, too

            async def caught_up() -> bool:
                return await broker.lag(topic, group=topic) == 0

            await eventually(caught_up, PATIENCE)


async def test_a_partition_that_stands_still_is_noticed_and_opened_anew(
    kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client's own state lost on purpose: it takes a partition for paused, and says that it is well."""
    members: list[receiver.KafkaReceiver] = []
    pause = receiver.KafkaReceiver._pause

    def resuming(self: receiver.KafkaReceiver, paused: bool) -> None:
        pause(self, paused)
        if not members:
            members.append(self)
            self._consumer.pause([TopicPartition(topic, 0)])

    monkeypatch.setattr(receiver, "PATIENCE", PATIENCE)  # or it may be resumed with all the others
    monkeypatch.setattr(receiver.KafkaReceiver, "_pause", resuming)
    monkeypatch.setattr("things_kit.brokers.kafka.receiver.INTERVAL", 0.5)
    async with connect(f"{kafka.url}?partitions=3&session_timeout=3") as broker:
        handler = Handler()
        async with broker.consumer(topic, group=topic, handler=handler, dead_letter=None):
            await all_arrive([handler], await published(broker, topic, 60))
    assert "none of them arrives" in caplog.text
