import asyncio

import pytest

from things_kit import (
    BrokerUnavailable,
    ClosedError,
    ConfigError,
    Consumer,
    Handler,
    Message,
    MessageTooLarge,
    Producer,
    PublishError,
    connect,
)
from things_kit.testing import MockConsumer, MockHandler, MockProducer

ORDER = Message("orders", b"{}", key=b"o-1")


def test_they_satisfy_the_contracts() -> None:
    handler: Handler = MockHandler()
    producer: Producer = MockProducer()
    consumer: Consumer = MockConsumer()
    assert isinstance(handler, Handler)
    assert isinstance(producer, Producer)
    assert isinstance(consumer, Consumer)


async def test_a_mock_handler_answers_as_told_and_then_returns() -> None:
    handler = MockHandler(outcomes=[ValueError("first"), None, KeyError])
    with pytest.raises(ValueError, match="first"):
        await handler.handle(ORDER)
    await handler.handle(ORDER)
    with pytest.raises(KeyError):
        await handler.handle(ORDER)
    await handler.handle(ORDER)
    assert handler.messages == [ORDER] * 4


async def test_assert_handled_finds_messages_by_their_fields() -> None:
    handler = MockHandler()
    refund = Message("refunds", b"1")
    for message in (ORDER, refund, ORDER):
        await handler.handle(message)
    assert handler.assert_handled(topic="orders") == [ORDER, ORDER]
    assert handler.assert_handled(key=None, count=1) == [refund]
    assert handler.assert_handled(value=b"{}", key=b"o-1", count=2) == [ORDER, ORDER]
    assert handler.assert_handled(topic="returns", count=0) == []
    assert handler.assert_handled(count=3)


async def test_assert_handled_says_what_was_handled_instead() -> None:
    handler = MockHandler()
    with pytest.raises(AssertionError, match="none was handled at all"):
        handler.assert_handled()
    await handler.handle(ORDER)
    with pytest.raises(
        AssertionError, match=r"topic='refunds' was handled; 1 were handled(.|\n)*topic='orders', key=b'o-1'"
    ):
        handler.assert_handled(topic="refunds")
    with pytest.raises(AssertionError, match="expected 2 messages with key=b'o-1', found 1"):
        handler.assert_handled(key=b"o-1", count=2)


async def test_handled_waits_for_messages() -> None:
    handler = MockHandler()
    waiting = asyncio.create_task(handler.handled(2))
    both = asyncio.create_task(handler.handled(1))
    await handler.handle(ORDER)
    assert await both == [ORDER]
    assert not waiting.done()
    await handler.handle(ORDER)
    assert await waiting == [ORDER, ORDER]
    assert await handler.handled(1) == [ORDER]


async def test_handled_gives_up_with_a_reason() -> None:
    handler = MockHandler()
    await handler.handle(ORDER)
    with pytest.raises(AssertionError, match="for 2 messages, but 1 were handled"):
        await handler.handled(2, timeout=0.01)


async def test_a_mock_producer_keeps_what_is_published() -> None:
    producer = MockProducer()
    await producer.publish(ORDER)
    await producer.publish_batch([ORDER, ORDER])
    assert producer.messages == [ORDER] * 3
    await producer.close()
    await producer.close()
    assert producer.closed
    with pytest.raises(ClosedError):
        await producer.publish(ORDER)
    with pytest.raises(ClosedError):
        await producer.publish_batch([ORDER])


async def test_a_mock_producer_fails_as_told() -> None:
    producer = MockProducer(fail_with=BrokerUnavailable("away"))
    with pytest.raises(BrokerUnavailable, match="away"):
        await producer.publish(ORDER)
    with pytest.raises(PublishError) as raised:
        await producer.publish_batch([ORDER, ORDER])
    assert list(raised.value.failures) == [0, 1]
    assert producer.messages == []
    producer.fail_with = None
    await producer.publish(ORDER)
    assert producer.messages == [ORDER]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Message("orders", "text"), "must be bytes"),  # type: ignore[arg-type]
        (Message("orders", b"x", headers={"tk-mine": "x"}), "belongs to the drivers"),
        (Message("orders", b"x", headers={"n": 1}), "must be a string"),  # type: ignore[dict-item]
        (Message("orders", b"x" * (16 * 1024 * 1024 + 1)), "bytes"),
    ],
)
async def test_a_mock_producer_refuses_what_the_engine_refuses(message: Message, says: str) -> None:
    producer = MockProducer()
    with pytest.raises(PublishError, match=says):
        await producer.publish(message)
    with pytest.raises(PublishError) as raised:
        await producer.publish_batch([ORDER, message, ORDER])
    assert list(raised.value.failures) == [1]
    assert producer.messages == [ORDER, ORDER]
    async with connect("memory://") as broker:
        with pytest.raises(PublishError, match=says):
            await broker.producer().publish(message)


async def test_a_mock_producer_has_the_limit_that_it_is_given() -> None:
    producer = MockProducer(max_message_bytes=10)
    await producer.publish(Message("orders", b"x" * 10))
    with pytest.raises(MessageTooLarge):
        await producer.publish(Message("orders", b"x" * 11))


async def test_a_mock_consumer_remembers_what_was_asked() -> None:
    consumer = MockConsumer()
    await consumer.start()
    waiting = asyncio.create_task(consumer.wait())
    done, _ = await asyncio.wait({waiting}, timeout=0.01)
    assert not done
    await consumer.stop()
    await waiting
    assert (consumer.started, consumer.stopped, consumer.waited) == (1, 1, 1)


async def test_a_mock_consumer_breaks_as_told() -> None:
    consumer = MockConsumer(fail_with=RuntimeError("broken"))
    async with consumer:
        with pytest.raises(RuntimeError, match="broken"):
            await consumer.wait()
    assert (consumer.started, consumer.stopped) == (1, 1)


async def test_a_mock_producer_refuses_a_name_that_looks_like_a_pattern() -> None:
    producer = MockProducer()
    for topic in ("orders.*", "orders.#", ">"):
        with pytest.raises(ConfigError, match="looks like a pattern"):
            await producer.publish(Message(topic, b""))
    assert producer.messages == []


async def test_one_message_is_no_batch() -> None:
    with pytest.raises(
        PublishError, match="publish_batch takes a list of messages, not Message; publish takes one"
    ):
        await MockProducer().publish_batch(Message("t", b""))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (Message("t", "text"), PublishError),  # type: ignore[arg-type]
        (Message("", b""), PublishError),
        (Message("t", b"", headers={"n": 5}), PublishError),  # type: ignore[dict-item]
        (Message("t", b"12345"), MessageTooLarge),
    ],
)
async def test_a_mock_handler_refuses_what_no_broker_brings(message: Message, error: type[Exception]) -> None:
    handler = MockHandler(max_message_bytes=4)
    with pytest.raises(error):
        await handler.handle(message)
    assert handler.messages == []


def test_an_outcome_is_an_exception_or_none() -> None:
    MockHandler([ValueError, ValueError(), None])
    with pytest.raises(TypeError, match="an outcome is an exception to raise, or None; it is 'boom'"):
        MockHandler(["boom"])  # type: ignore[list-item]
