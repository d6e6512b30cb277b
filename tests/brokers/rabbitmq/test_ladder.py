"""Messages for later at RabbitMQ: what the conformance suite does not ask of every broker."""

import asyncio
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("pika")

import pika

from things_kit import Broker, ConfigError, Message, PublishError, UnsupportedError, connect
from things_kit.brokers.rabbitmq.ladder import LONGEST, RADIXES, UNIT, WORTH, level_and_digits
from things_kit.brokers.rabbitmq.names import level_name, wait_queue
from things_kit.messaging.names import REPLAY_GROUP
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own
from things_kit.testing.servers.rabbitmq import RabbitMQServer

SOON = 0.3
YEAR = 365 * 86_400.0


class HastyServer(RabbitMQServer):
    """It tries to hand on what nobody took twice a second, and not every three minutes."""

    def environment(self) -> Mapping[str, str]:
        found = dict(super().environment())
        more = " -rabbit dead_letter_worker_publisher_confirm_timeout 500"
        found["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"] += more
        return found


own_rabbitmq = own(HastyServer)


@pytest.fixture
def raw(rabbitmq: RabbitMQServer) -> Iterator[Any]:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        yield connection.channel()


async def _until_lag(broker: Broker, topic: str, group: str, expected: int) -> None:
    async def reached() -> bool:
        return await broker.lag(topic, group) == expected

    await eventually(reached, 20.0, f"the lag of {topic} is {expected}")


def _ready(raw: Any, queue: str) -> int:
    count: int = raw.queue_declare(queue, passive=True).method.message_count
    return count


# --- the way


@pytest.mark.parametrize("wait", [0.0001, 0.1, 0.10001, 0.5, 59.94, 60, 86_400, YEAR, LONGEST])
def test_a_message_waits_once_for_each_digit_of_its_wait(wait: float) -> None:
    level, digits = level_and_digits(wait)
    words = [int(word) for word in digits.split(".")]
    assert len(words) == level + 1
    assert words[-1] > 0, "there is no exchange above that a wait does not need"
    waited = sum(word * worth for word, worth in zip(words, WORTH, strict=False))
    assert 0 <= waited - 1000 * wait < UNIT + 0.001


async def test_what_is_due_takes_its_place_and_is_in_lag_only_then(broker: Broker, topic: str) -> None:
    await broker.declare(topic, groups=["billing"])
    producer = broker.producer()
    await producer.publish(Message(topic, b"scheduled", key=b"k"), after=5 * SOON)
    assert await broker.lag(topic, "billing") == 0
    await producer.publish(Message(topic, b"before", key=b"k"))
    await _until_lag(broker, topic, "billing", 2)
    await producer.publish(Message(topic, b"after", key=b"k"))
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder):
        found = await recorder.until_done(3, 20.0)
    assert [(each.key, each.value) for each in found] == [
        (b"k", b"before"),
        (b"k", b"scheduled"),
        (b"k", b"after"),
    ]


async def test_a_year_ahead_is_kept_and_more_than_can_be_is_refused(
    broker: Broker, topic: str, raw: Any
) -> None:
    await broker.declare(topic, groups=["billing"])
    producer, queue = broker.producer(), wait_queue(20, 1)
    await producer.publish(Message(topic, b"a year"), after=YEAR)
    before = _ready(raw, queue)
    with pytest.raises(PublishError) as raised:
        await producer.publish_batch([Message(topic, b"a"), Message(topic, b"b")], after=2 * YEAR)
    assert [type(error) for error in raised.value.failures.values()] == [UnsupportedError] * 2
    with pytest.raises(UnsupportedError, match="621 days"):
        await producer.publish(Message(topic, b"c"), at=datetime.now(UTC) + timedelta(days=800))
    assert before >= 1
    assert _ready(raw, queue) == before


async def test_headers_as_large_as_any_pass_all_levels(broker: Broker, topic: str) -> None:
    headers = {f"h{number}": "x" * 12_600 for number in range(10)}
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder):
        await broker.producer().publish(Message(topic, b"v", headers=headers), after=1.5)
        [found] = await recorder.until_done(1, 20.0)
    assert found.headers == headers


async def test_what_is_for_one_group_is_for_it_alone_later_too(broker: Broker, topic: str) -> None:
    await broker.declare(topic, groups=["billing", "shipping"])
    message = Message(topic, b"again", headers={REPLAY_GROUP: "billing"})
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder):
        await broker.producer().publish(message, after=SOON)
        await recorder.until_done(1, 20.0)
    assert await broker.lag(topic, "shipping") == 0


async def test_an_exchange_of_others_gets_it_under_its_routing_key(
    rabbitmq: RabbitMQServer, topic: str, raw: Any
) -> None:
    raw.exchange_declare(f"{topic}-theirs", "topic", durable=True)
    recorder, other = Recorder(), Recorder()
    async with (
        connect(f"{rabbitmq.url}?exchange={topic}-theirs&routing_key=a.%7Btopic%7D") as broker,
        broker.consumer(topic, group="billing", handler=recorder),
        broker.consumer(f"{topic}.other", group="other", handler=other),
    ):
        await broker.producer().publish(Message(topic, b"v", key=b"k"), after=SOON)
        [found] = await recorder.until_done(1, 20.0)
        assert (found.key, found.value, other.began) == (b"k", b"v", [])
    for queue in (f"billing.{topic}", f"other.{topic}.other"):
        raw.queue_delete(queue)
    raw.exchange_delete(f"{topic}-theirs")


# --- what is removed


async def test_what_is_on_its_way_to_a_removed_topic_goes_and_holds_back_no_other(
    rabbitmq: RabbitMQServer, broker: Broker, topic: str
) -> None:
    other, recorder = f"{topic}-other", Recorder()
    await broker.declare(topic, groups=["billing"])
    producer = broker.producer()
    await producer.publish_batch([Message(topic, b"gone") for _ in range(100)], after=SOON)
    async with connect(rabbitmq.url) as another:
        await another.remove(topic)
        await another.declare(topic, groups=["billing"])
    async with broker.consumer(other, group="billing", handler=recorder):
        await producer.publish(Message(other, b"kept"), after=SOON)
        await recorder.until_done(1, 20.0)
    assert await broker.lag(topic, "billing") == 0
    await producer.publish(Message(topic, b"new"), after=SOON)
    await _until_lag(broker, topic, "billing", 1)
    await broker.remove(other)


async def test_nothing_is_confirmed_whose_topic_was_removed_before(
    rabbitmq: RabbitMQServer, broker: Broker, topic: str
) -> None:
    """Though all that a publish for later is confirmed by is still there."""
    await broker.declare(topic, groups=["billing"])
    async with connect(f"{rabbitmq.url}?declare=false") as another:
        producer = another.producer()
        await broker.producer().publish(Message(topic, b"a"), after=SOON)
        await producer.publish(Message(topic, b"b"), after=SOON)
        await broker.remove(topic)
        with pytest.raises(ConfigError, match=r"'\.things-kit\.due\..*declare=true"):
            await producer.publish(Message(topic, b"c"), after=SOON)


# --- on a server of our own


async def test_messages_for_later_outlive_the_broker_and_wait_for_who_listens(
    own_rabbitmq: HastyServer,
) -> None:
    """One life of a server: nothing made, something torn, nobody there, killed."""
    url, recorder = f"{own_rabbitmq.url}?publish_timeout=90", Recorder()
    async with connect(f"{url}&declare=false") as strict, connect(url) as broker:
        await broker.declare("orders", groups=["billing"])
        with pytest.raises(ConfigError, match=r"'\.things-kit\.wait-\d\d'.*declare=true"):
            await strict.producer().publish(Message("orders", b"refused"), after=SOON)
        producer = broker.producer()
        await producer.publish(Message("orders", b"first"), after=SOON)
        await _until_lag(broker, "orders", "billing", 1)

        await asyncio.to_thread(_tear_down, own_rabbitmq)
        await producer.publish(Message("orders", b"made anew"), after=SOON)
        await _until_lag(broker, "orders", "billing", 2)

        await broker.declare("unheard")
        await producer.publish(Message("unheard", b"kept"), after=0.1)
        await producer.publish(Message("orders", b"not held back"), after=0.2)
        await _until_lag(broker, "orders", "billing", 3)
        await broker.declare("unheard", groups=["at last"])
        await _until_lag(broker, "unheard", "at last", 1)

        await producer.publish_batch([Message("orders", b"%d" % n) for n in range(40)], after=2.3)
        await asyncio.to_thread(own_rabbitmq.kill)
        await asyncio.to_thread(own_rabbitmq.start)
        await _until_lag(broker, "orders", "billing", 43)
        async with broker.consumer("orders", group="billing", handler=recorder):
            found = await recorder.until_done(43, 20.0)
    assert [each.value for each in found[3:]] == [b"%d" % n for n in range(40)]


def _tear_down(server: RabbitMQServer) -> None:
    """Somebody deletes by hand what looks as if nobody used it."""
    with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
        channel: Any = connection.channel()
        for level in range(2):
            channel.exchange_delete(level_name(level))
            for digit in range(1, RADIXES[level]):
                channel.queue_delete(wait_queue(level, digit))
