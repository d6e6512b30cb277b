"""Messages for later at Kafka: what the conformance suite does not ask of every broker."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined] # no __all__

from things_kit import Broker, Message, connect
from things_kit.brokers.kafka import waits
from things_kit.engine.looking import topics_of
from things_kit.engine.wait_topics import CARRIER, DEAD_LETTER, TOPIC, WAITS, declare
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.kafka import KafkaServer

SOON = 0.4
PATIENCE = 30.0
YEAR = 365 * 86_400.0

kafka = shared(KafkaServer, "kafka")


@pytest.fixture
async def url(kafka: KafkaServer) -> AsyncIterator[str]:
    """Of names that no other test has; what waits there is removed after it."""
    url = f"{kafka.url}?session_timeout=3&partitions=2&topic_prefix={uuid4().hex[:10]}-"
    yield url
    async with connect(url) as broker:
        for topic in ("orders", TOPIC, DEAD_LETTER):
            await broker.remove(topic)


@pytest.fixture
async def broker(url: str) -> AsyncIterator[Broker]:
    async with connect(url) as opened:
        await declare(opened.transmission)
        yield opened


async def _until_carried(broker: Broker, left: int = 0) -> None:
    async def carried() -> bool:
        return await broker.lag(TOPIC, CARRIER) == left

    await eventually(carried, PATIENCE, "all else is carried on")


async def test_it_arrives_as_it_was_published(broker: Broker) -> None:
    recorder = Recorder()
    message = Message(
        "orders", b"\xff", b"k", {"a": "ü"}, 1, timestamp=datetime(2020, 1, 1, tzinfo=UTC), id="i"
    )
    async with broker.consumer("orders", group="billing", handler=recorder):
        await broker.producer().publish(message, after=SOON)
        [found] = await recorder.until_done(1, PATIENCE)
    assert found.replace(offset=None) == message


async def test_what_waits_long_holds_back_nothing_that_is_due_soon(broker: Broker) -> None:
    recorder = Recorder()
    async with broker.consumer("orders", group="billing", handler=recorder):
        producer = broker.producer()
        await producer.publish_batch([Message("orders", b"later") for _ in range(1100)], after=YEAR)
        await producer.publish_batch([Message("orders", b"%d" % n, b"k") for n in range(300)], after=SOON)
        found = await recorder.until_done(300, PATIENCE)
        assert [each.value for each in found] == [b"%d" % n for n in range(300)]
        await _until_carried(broker, 1100)


async def test_what_was_carried_on_is_deleted_and_the_rest_is_kept_for_ever(
    broker: Broker, kafka: KafkaServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "TRIM", 0.2)
    prefix = url.rpartition("=")[2]
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    [asked] = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, prefix + TOPIC)]).values()
    settings = {name: entry.value for name, entry in (await asyncio.to_thread(asked.result)).items()}
    assert (settings["retention.ms"], settings["retention.bytes"], settings["cleanup.policy"]) == (
        "-1",
        "-1",
        "delete",
    )
    recorder = Recorder()
    async with broker.consumer("orders", group="billing", handler=recorder):
        producer = broker.producer()
        await producer.publish_batch([Message("orders", b"v") for _ in range(20)], after=SOON)
        await producer.publish(Message("orders", b"kept"), after=YEAR)
        await recorder.until_done(20, PATIENCE)

        async def trimmed() -> bool:
            places = await broker.transmission.driver._driver._admin.places(prefix + TOPIC, prefix + CARRIER)  # type: ignore[attr-defined]
            return [place.start for place in places] == [20, *[0] * (len(WAITS) - 1)]

        await eventually(trimmed, PATIENCE, "what was carried on is deleted, and nothing else")
        await _until_carried(broker, 1)


async def test_two_processes_share_the_work_and_nothing_is_lost_when_one_goes(
    broker: Broker, url: str
) -> None:
    recorder = Recorder()
    async with broker.consumer("orders", group="billing", handler=recorder):
        producer = broker.producer()
        async with connect(url) as other, other.consumer("orders", group="other", handler=Recorder()):
            for number in range(100):
                await producer.publish(Message("orders", b"%d" % number), after=number * 0.02)
            await recorder.until_done(50, PATIENCE)
        await eventually(lambda: _has_all(recorder, 100), PATIENCE, "all have come, if twice")


async def _has_all(recorder: Recorder, count: int) -> bool:
    return {message.value for message in recorder.began} == {b"%d" % number for number in range(count)}


async def test_where_messages_wait_is_not_shown(broker: Broker) -> None:
    await broker.declare("orders")
    assert await topics_of(broker) == ["orders", DEAD_LETTER]
