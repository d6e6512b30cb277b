"""Publishing: batches, what the service refuses, and whose fault it is."""

import asyncio
from collections.abc import Sequence

import pytest

from things_kit import (
    Broker,
    BrokerUnavailable,
    Message,
    MessageTooLarge,
    NobodyListens,
    PublishError,
    RetryPolicy,
    connect,
)
from things_kit.brokers.servicebus import publisher
from things_kit.brokers.servicebus.amqp.connection import AmqpError
from things_kit.brokers.servicebus.amqp.links import Link
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.servicebus import KEY, ServiceBusServer

from .common import client_of, driver_of, lag_is


def test_a_batch_has_as_many_as_it_takes_in_order() -> None:
    rest = list(enumerate([b"x" * 40, b"x" * 40, b"x" * 40, b"x" * 500, b"x"]))
    counts = []
    while rest:
        counts.append(publisher._fitting(rest, 100))
        del rest[: counts[-1]]
    assert counts == [2, 1, 1, 1]


async def test_batches_that_do_not_fit_into_one_arrive_in_order(broker: Broker, topic: str) -> None:
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
        await broker.producer().publish_batch(
            [Message(topic, b"%d" % n + bytes(90_000), key=b"k") for n in range(9)]
        )
        await recorder.until_done(9, 20)
    assert [value.rstrip(b"\0") for value in recorder.values] == [b"%d" % n for n in range(9)]


async def test_of_a_batch_that_is_refused_only_the_culprit_fails(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Link.send

    async def picky(self: Link, payload: bytes, form: int = 0) -> None:
        if b"culprit" in payload:
            raise AmqpError("com.microsoft:argument-error", "the service does not like it")
        await send(self, payload, form)

    monkeypatch.setattr(Link, "send", picky)
    await broker.declare(topic, groups=["billing"])
    with pytest.raises(PublishError) as refused:
        await broker.producer().publish_batch([Message(topic, each) for each in (b"1", b"culprit", b"2")])
    assert set(refused.value.failures) == {1}
    assert "does not like it" in str(refused.value.failures[1])
    assert await broker.lag(topic, group="billing") == 2


async def test_keys_stay_in_order_when_one_of_several_batches_under_way_is_refused(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages go once more, each alone; the others under way have other keys."""
    send, together, most = Link.send, 0, 0

    async def picky(self: Link, payload: bytes, form: int = 0) -> None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        try:
            if b"culprit" in payload:
                raise AmqpError("com.microsoft:argument-error", "the service does not like it")
            await send(self, payload, form)
        finally:
            together -= 1

    monkeypatch.setattr(publisher, "FEW", 20)
    monkeypatch.setattr(publisher, "MOST", 10)
    monkeypatch.setattr(Link, "send", picky)
    sent = [Message(topic, b"%d" % n, key=b"k%d" % (n % 8)) for n in range(200)]
    sent[16] = sent[16].replace(value=b"culprit")
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder, concurrency=4):
        with pytest.raises(PublishError) as refused:
            await broker.producer().publish_batch(sent)
        await recorder.until_done(199, 20)
    assert set(refused.value.failures) == {16}
    assert most == publisher.UNDERWAY
    for key in {message.key for message in sent}:
        expected = [each.value for each in sent if each.key == key and each.value != b"culprit"]
        assert [each.value for each in recorder.done if each.key == key] == expected


@pytest.mark.parametrize("arrives", [False, True], ids=["lost", "lost answer"])
async def test_keys_stay_in_order_when_one_of_several_batches_under_way_is_lost(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """All goes once more, and nothing of a key has come before what is ahead of it."""
    send, calls = Link.send, 0

    async def losing(self: Link, payload: bytes, form: int = 0) -> None:
        nonlocal calls
        calls += 1
        lost = calls == publisher.UNDERWAY + 2
        if not lost or arrives:
            await send(self, payload, form)
        if lost:
            raise OSError("the line is cut")

    monkeypatch.setattr(publisher, "FEW", 20)
    monkeypatch.setattr(publisher, "MOST", 10)
    monkeypatch.setattr(Link, "send", losing)
    sent = [Message(topic, b"%d" % n, key=b"k%d" % (n % 8)) for n in range(200)]
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder, concurrency=4):
        await broker.producer().publish_batch(sent)
        await eventually(lambda: {each.value for each in recorder.done} == {each.value for each in sent}, 20)
    for key in {message.key for message in sent}:
        first = list(dict.fromkeys(each.value for each in recorder.done if each.key == key))
        assert first == [each.value for each in sent if each.key == key]


async def test_what_is_under_way_at_once_has_the_bytes_of_one_batch(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has the same time, over a slow line as well."""
    send, together, most = Link.send, list[int](), list[int]()

    async def noting(self: Link, payload: bytes, form: int = 0) -> None:
        together.append(len(payload))
        most.append(sum(together))
        await send(self, payload, form)
        together.remove(len(payload))

    monkeypatch.setattr(publisher, "FEW", 20)
    monkeypatch.setattr(publisher, "_largest", lambda _: 20_000)
    monkeypatch.setattr(Link, "send", noting)
    await broker.declare(topic, groups=["billing"])
    await broker.producer().publish_batch([Message(topic, bytes(500), key=b"k%d" % n) for n in range(100)])
    assert len(most) > publisher.UNDERWAY
    assert 10_000 < max(most) <= 20_000


async def test_nothing_is_sent_after_a_batch_was_lost(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others that were under way have ended before it all begins anew."""
    send, lost, open_calls = Link.send, False, 0

    async def losing(self: Link, payload: bytes, form: int = 0) -> None:
        nonlocal lost, open_calls
        if not lost:
            lost = True
            raise OSError("the line is cut")
        open_calls += 1
        await send(self, payload, form)
        open_calls -= 1

    publish = driver_of(broker).send
    ended: list[int] = []

    async def watched(messages: Sequence[Message]) -> Sequence[Exception | None]:
        try:
            return await publish(messages)
        finally:
            ended.append(open_calls)

    monkeypatch.setattr(publisher, "FEW", 20)
    monkeypatch.setattr(Link, "send", losing)
    monkeypatch.setattr(driver_of(broker), "send", watched)
    await broker.declare(topic, groups=["billing"])
    await broker.producer().publish_batch([Message(topic, b"x", key=b"k%d" % n) for n in range(80)])
    assert ended == [0, 0]


async def test_too_many_headers_fail_alone(broker: Broker, topic: str) -> None:
    await broker.declare(topic, groups=["billing"])
    large = Message(topic, b"x", headers={f"h{n}": "x" * 1000 for n in range(70)})
    with pytest.raises(PublishError) as refused:
        await broker.producer().publish_batch([Message(topic, b"1"), large, Message(topic, b"2")])
    assert set(refused.value.failures) == {1}
    assert await broker.lag(topic, group="billing") == 2


async def test_what_the_service_finds_too_large_is_too_large(
    servicebus: ServiceBusServer, topic: str
) -> None:
    async with connect(f"{servicebus.url}&max_message_bytes=2000000") as broker:
        await broker.declare(topic, groups=["billing"])
        with pytest.raises(MessageTooLarge, match="Service Bus"):
            await broker.producer().publish(Message(topic, bytes(1_500_000)))
        await broker.producer().publish(Message(topic, b"x"))
        assert await broker.lag(topic, group="billing") == 1


async def test_publishing_with_a_wrong_key_fails_with_a_sentence(
    servicebus: ServiceBusServer, broker: Broker, topic: str
) -> None:
    await broker.declare(topic)
    wrong = servicebus.url.replace("key=", "key=Z2VoZWlt", 1)
    async with connect(f"{wrong}&declare=false&publish_timeout=5") as stranger:
        with pytest.raises((PublishError, BrokerUnavailable)) as refused:
            await stranger.producer().publish(Message(topic, b"x"))
    assert "Z2VoZWlt" not in str(refused.value)
    assert KEY not in str(refused.value)


async def test_a_topic_that_nobody_has_is_refused(broker: Broker, topic: str) -> None:
    await broker.declare(topic)
    with pytest.raises(NobodyListens):
        await broker.producer().publish(Message(topic, b"x"))


async def test_a_queue_keeps_what_nobody_has_asked_for_yet(servicebus: ServiceBusServer, topic: str) -> None:
    async with connect(f"{servicebus.url}&mode=queue") as broker:
        await broker.producer().publish(Message(topic, b"x"))
        assert await broker.lag(topic, group="billing") == 1
        await broker.remove(topic)


async def test_a_link_that_the_service_closes_is_opened_anew(broker: Broker, topic: str) -> None:
    """It does so when nothing was sent for ten minutes."""
    await broker.declare(topic, groups=["billing"])
    producer = broker.producer()
    await producer.publish(Message(topic, b"1"))
    await client_of(broker)._senders[topic].close()
    await producer.publish(Message(topic, b"2"))
    assert await broker.lag(topic, group="billing") == 2


async def test_a_publish_that_is_given_up_leaves_its_link_to_others(broker: Broker, topic: str) -> None:
    await broker.declare(topic, groups=["billing"])
    producer = broker.producer()
    for turns in range(12):
        giving_up = asyncio.create_task(broker.transmission.driver.send([_completed(topic, b"given up")]))
        for _ in range(turns):
            await asyncio.sleep(0)
        giving_up.cancel()
        await asyncio.wait({giving_up})
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
        await producer.publish(Message(topic, b"x"))
        await eventually(lambda: b"x" in recorder.values, 15)


def _completed(topic: str, value: bytes) -> Message:
    """As the engine completes it."""
    from datetime import UTC, datetime  # noqa: PLC0415

    return Message(topic, value, id="m", timestamp=datetime.now(UTC))


async def test_a_topic_that_drops_duplicates_lets_copies_and_dead_letters_through(
    servicebus: ServiceBusServer, topic: str
) -> None:
    async with connect(f"{servicebus.url}&dedup=60") as broker:
        await broker.declare(topic, groups=["billing"])
        await broker.declare(f"{topic}-dlq", groups=["dead-letters"])
        failures = 2

        async def act(message: Message) -> None:
            nonlocal failures
            if failures:
                failures -= 1
                raise ValueError("not yet")

        recorder = Recorder(act)
        once = RetryPolicy(attempts=1)
        async with broker.consumer(topic, group="billing", handler=recorder, retry=once):
            producer = broker.producer()
            await producer.publish(Message(topic, b"x", id="m-1"))
            await producer.publish(Message(topic, b"x", id="m-1"))  # dropped
            for _ in range(2):
                await eventually(lambda: lag_is(broker, f"{topic}-dlq", 1, "dead-letters"), 15, "it is dead")
                assert await broker.replay(f"{topic}-dlq") == 1
            [done] = await recorder.until_done(1, 15)
            assert done.id == "m-1"
