"""What comes later on SQS: copies in the queues of all groups, which wait there until they are due."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("aiobotocore")

from things_kit import Broker, Message, NobodyListens, RetryPolicy, UnsupportedError, connect
from things_kit.brokers.sqs import scheduling
from things_kit.testing.conformance.recorder import Recorder, failing
from things_kit.testing.servers.sqs import SQSServer

pytestmark = pytest.mark.usefixtures("credentials")

DAY = 86_400.0


def now() -> datetime:
    return datetime.now(UTC)


async def test_every_group_gets_it_also_one_without_a_name(broker: Broker, topic: str) -> None:
    recorders = {group: Recorder() for group in ("billing", "shipping", None)}
    consumers = [broker.consumer(topic, group=group, handler=each) for group, each in recorders.items()]
    for consumer in consumers:
        await consumer.start()
    due = now() + timedelta(seconds=0.5)
    await broker.producer().publish(Message(topic, b"v"), at=due)
    for each in recorders.values():
        assert [message.value for message in await each.until_done(1, 10)] == [b"v"]
    assert now() >= due
    for consumer in consumers:
        await consumer.stop()


async def test_what_sqs_cannot_delay_for_so_long_is_waited_on(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever receives it too early hides it again, and that is no attempt."""
    monkeypatch.setattr(scheduling, "MOST_DELAYED", 0)
    await broker.declare(topic, ["g"])
    recorder, due = Recorder(), now() + timedelta(seconds=1.5)
    async with broker.consumer(topic, group="g", handler=recorder):
        await broker.producer().publish(Message(topic, b"v"), at=due)
        [message] = await recorder.until_done(1, 10)
    assert now() >= due
    assert message.attempt == 1


async def test_attempts_are_right_for_what_was_first_received_when_it_was_due(
    broker: Broker, topic: str
) -> None:
    await broker.declare(topic, ["g"])
    due = now() + timedelta(seconds=0.5)
    await broker.producer().publish(Message(topic, b"v"), at=due)
    await asyncio.sleep((due - now()).total_seconds())  # so long nobody is there
    recorder = Recorder(failing(2))
    again = RetryPolicy(attempts=5, first=1.0, limit=1.0, jitter=0.0)
    async with broker.consumer(topic, group="g", handler=recorder, retry=again):
        await recorder.until_done(1, 15)
    assert [message.attempt for message in recorder.began] == [1, 2, 3]


async def test_a_queue_without_sns_keeps_it_as_well(sqs: SQSServer, topic: str) -> None:
    async with connect(f"{sqs.url}&mode=queue&grace=0") as broker:
        recorder = Recorder()
        async with broker.consumer(topic, group="g", handler=recorder):
            await broker.producer().publish(Message(topic, b"v", key=b"k"), after=0.3)
            assert [message.key for message in await recorder.until_done(1, 10)] == [b"k"]
        await broker.remove(topic)


async def test_a_fifo_topic_and_more_than_two_weeks_are_refused(broker: Broker, topic: str) -> None:
    await broker.declare(topic, ["g"])
    await broker.declare(f"{topic}.fifo", ["g"])
    producer = broker.producer()
    with pytest.raises(UnsupportedError, match="FIFO"):
        await producer.publish(Message(f"{topic}.fifo", b"v", key=b"k"), after=1)
    with pytest.raises(UnsupportedError, match="14 days"):
        await producer.publish(Message(topic, b"v"), after=14 * DAY + 60)
    await producer.publish(Message(topic, b"v"), after=14 * DAY - 60)


async def test_a_topic_without_groups_is_said_or_dropped(sqs: SQSServer, broker: Broker, topic: str) -> None:
    with pytest.raises(NobodyListens):
        await broker.producer().publish(Message(topic, b"v"), after=1)
    async with connect(f"{sqs.url}&grace=0&unrouted=drop") as other:
        await other.producer().publish(Message(topic, b"v"), after=1)


async def test_aws_is_asked_for_the_groups_once_a_second_and_forgets_none_of_ours(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broker.declare(topic, ["a"])
    admin: Any = broker._driver._admin  # type: ignore[attr-defined]
    asked: list[str] = []
    before = admin.subscriptions

    def subscriptions(topic: str) -> Any:
        asked.append(topic)
        return before(topic)

    monkeypatch.setattr(admin, "subscriptions", subscriptions)
    for _ in range(10):
        assert len(await admin.queues(topic)) == 1
    assert len(asked) == 1
    await broker.declare(topic, ["b"])
    assert len(await admin.queues(topic)) == 2
    await broker.remove(topic, group="a")
    assert len(await admin.queues(topic)) == 1
    await broker.remove(topic)
    assert await admin.queues(topic) is None
