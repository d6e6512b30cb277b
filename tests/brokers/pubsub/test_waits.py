"""Messages for later at Pub/Sub: what the conformance suite does not ask of every broker."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest

pytest.importorskip("google.pubsub_v1")

from things_kit import Broker, Message, UnsupportedError, connect
from things_kit.brokers.pubsub.driver import PubSubDriver
from things_kit.brokers.pubsub.receiver import PubSubReceiver
from things_kit.brokers.pubsub.stream import Stream
from things_kit.engine.driver import Subscription
from things_kit.engine.looking import topics_of
from things_kit.engine.wait_topics import CARRIER, DEAD_LETTER, LEASE, declare, wait_topics
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.pubsub import PubSubServer

SOON = 0.4
PATIENCE = 30.0
DAY = 86_400

pubsub = shared(PubSubServer, "pubsub")


@pytest.fixture
async def url(pubsub: PubSubServer) -> AsyncIterator[str]:
    """Of names that no other test has; what waits there is removed after it."""
    url = f"{pubsub.url}&expire=600&topic_prefix=t{uuid4().hex[:10]}-"
    yield url
    async with connect(url) as broker:
        for topic in ("orders", *wait_topics(partitions=False), DEAD_LETTER):
            await broker.remove(topic)


@pytest.fixture
async def broker(url: str) -> AsyncIterator[Broker]:
    async with connect(url) as opened:
        await declare(opened.transmission)
        yield opened


async def test_it_arrives_as_it_was_published_though_many_wait_for_long(broker: Broker) -> None:
    recorder = Recorder()
    message = Message("orders", b"\xff", b"k", {"a": "ü"}, timestamp=datetime(2020, 1, 1, tzinfo=UTC), id="i")
    async with broker.consumer("orders", group="billing", handler=recorder):
        producer = broker.producer()
        await producer.publish_batch([Message("orders", b"later") for _ in range(2500)], after=30 * DAY)
        await producer.publish(message, after=SOON)
        [found] = await recorder.until_done(1, PATIENCE)
    assert found.replace(offset=None) == message


async def test_more_than_31_days_ahead_are_refused(broker: Broker) -> None:
    with pytest.raises(UnsupportedError, match="keeps a message for 31 days at most"):
        await broker.producer().publish(Message("orders", b"v"), after=32 * DAY)


async def test_what_waits_is_kept_for_longer_than_a_wait_and_not_shown(broker: Broker, url: str) -> None:
    prefix = url.rpartition("=")[2]
    driver = broker.transmission.driver._driver  # type: ignore[attr-defined]
    assert isinstance(driver, PubSubDriver)
    for topic in wait_topics(partitions=False):
        found = await driver._admin.find(prefix + topic, prefix + CARRIER)
        assert found is not None
        assert found.message_retention_duration.total_seconds() == 7 * DAY
    assert await topics_of(broker) == [DEAD_LETTER]


async def test_what_waits_is_leased_for_ten_seconds_whatever_the_lease_of_the_url(url: str) -> None:
    """It is everybody's: who may hold their own messages for ten minutes must not keep others' for as long when they die."""
    prefix = url.rpartition("=")[2]
    async with connect(f"{url}&lease=600") as broker:
        await declare(broker.transmission)
        driver = broker.transmission.driver._driver  # type: ignore[attr-defined]
        assert isinstance(driver, PubSubDriver)
        found = [
            await driver._admin.find(prefix + topic, prefix + CARRIER)
            for topic in wait_topics(partitions=False)
        ]
        assert {each.ack_deadline_seconds for each in found if each is not None} == {LEASE}
        topic = prefix + wait_topics(partitions=False)[0]
        receiver = await driver.subscribe(Subscription(topic=topic, group=prefix + CARRIER, create=False))
        assert isinstance(receiver, PubSubReceiver)
        stream = Stream()
        requests = receiver._requests(stream)
        assert (await anext(requests)).stream_ack_deadline_seconds == LEASE
        await requests.aclose()  # type: ignore[attr-defined]
        await receiver.close()
