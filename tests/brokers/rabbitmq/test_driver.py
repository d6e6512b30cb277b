"""What the driver tells RabbitMQ, and when: confirms, prefetching, acknowledgements, and putting off."""

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

pytest.importorskip("pika")

import pika
from pika.exceptions import ChannelClosedByBroker
from pika.spec import Basic, BasicProperties

from things_kit import Message, PublishError, connect
from things_kit.brokers.rabbitmq.amqp.connection import Connection
from things_kit.brokers.rabbitmq.driver import RabbitMQDriver
from things_kit.brokers.rabbitmq.link import Link
from things_kit.brokers.rabbitmq.names import TIERS, delay_queue
from things_kit.brokers.rabbitmq.options import Settings
from things_kit.brokers.rabbitmq.publisher import Publisher, Unroutable
from things_kit.brokers.rabbitmq.receiver import RabbitMQReceiver
from things_kit.brokers.rabbitmq.wire import GIVEN_BACK, Letter
from things_kit.engine.collected import Collected, Collecting, collect
from things_kit.engine.driver import ConnectionLost, Delivery, Later, Release, Subscription
from things_kit.engine.facts import Question
from things_kit.engine.url import BrokerURL
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.rabbitmq import RabbitMQServer

rabbitmq = shared(RabbitMQServer, "rabbitmq")


@pytest.fixture
async def driver(rabbitmq: RabbitMQServer) -> AsyncIterator[RabbitMQDriver]:
    driver = RabbitMQDriver.from_url(BrokerURL.parse(rabbitmq.url))
    await driver.open()
    yield driver
    await driver.close()


@pytest.fixture
async def topic(driver: RabbitMQDriver) -> AsyncIterator[str]:
    name = f"orders-{uuid4().hex[:10]}"
    await driver.declare(name, ["g"])
    yield name
    await driver.remove(name)


@pytest.fixture
def raw(rabbitmq: RabbitMQServer) -> Iterator[Any]:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        yield connection.channel()


def numbered(topic: str, count: int) -> list[Message]:
    return [Message(topic, b"%d" % n, id=str(n)) for n in range(count)]


async def received(receiver: Collecting, count: int) -> list[Any]:
    """So many deliveries."""
    deliveries: list[Any] = []
    async with asyncio.timeout(10):
        while len(deliveries) < count:
            deliveries += await receiver.receive(count - len(deliveries), 5)
    return deliveries


def values(deliveries: list[Any]) -> list[bytes]:
    return [delivery.message.value for delivery in deliveries]


# --- publishing


class Told:
    """A link to a broker that says only what the test has it say."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.sent = asyncio.Event()
        self.on_confirm: Callable[[Any], None]
        self.on_return: Callable[..., None]
        self.publisher: Publisher
        self.number = 1
        self.connection = SimpleNamespace(most=100_000, write=lambda _: self.sent.set())

    async def channel(self) -> "Told":
        return self

    async def until_unblocked(self, within: float) -> None:
        pass

    def on_lost(self, listener: Callable[[Exception], object]) -> None:
        pass

    async def ask(self, _: Any) -> None:
        pass

    def say(self, method: Basic.Ack | Basic.Nack) -> None:
        self.on_confirm(method)


@pytest.fixture
def told() -> Told:
    return Told()


async def published(told: Told, count: int) -> "asyncio.Task[list[Exception | None]]":
    """So many letters on their way, which have no answer yet."""
    letters = [Letter("t", "", BasicProperties(headers={}, message_id=str(n)), b"x") for n in range(count)]
    told.publisher = Publisher(cast("Link", told))
    publishing = asyncio.create_task(told.publisher.publish(letters))
    while len(told.publisher._open) < count:
        told.sent.clear()
        await told.sent.wait()
    return publishing


async def answers(publishing: "asyncio.Task[list[Exception | None]]") -> list[Exception | None]:
    """What became of each, which is known by now."""
    async with asyncio.timeout(5):
        return await publishing


async def test_a_confirm_of_several_is_of_those_up_to_it_and_of_none_behind(told: Told) -> None:
    publishing = await published(told, 6)
    told.say(Basic.Ack(5))
    told.say(Basic.Ack(3, multiple=True))
    told.say(Basic.Nack(4))
    told.say(Basic.Nack(6, multiple=True))
    refused = [n for n, error in enumerate(await answers(publishing)) if isinstance(error, PublishError)]
    assert refused == [3, 5]


async def test_a_refusal_of_several_is_none_of_what_was_confirmed_before(told: Told) -> None:
    publishing = await published(told, 4)
    told.say(Basic.Ack(2))
    told.say(Basic.Nack(3, multiple=True))
    told.say(Basic.Ack(4, multiple=True))
    assert [error is None for error in await answers(publishing)] == [False, True, False, True]


async def test_a_confirm_costs_as_much_as_it_confirms(told: Told) -> None:
    """However many were confirmed one by one since the last of several, and whatever waits before them."""
    publishing, publisher = await published(told, 1000), told.publisher
    looked = publisher._open = Looked(publisher._open)
    for tag in range(2, 1000):
        told.say(Basic.Ack(tag))
    looked.count = 0
    told.say(Basic.Ack(1, multiple=True))
    told.say(Basic.Ack(1000, multiple=True))
    assert looked.count <= 2 + 1
    assert await answers(publishing) == [None] * 1000


class Looked(OrderedDict[int, Any]):
    """Counts how often an entry was looked for or taken."""

    count = 0

    def __iter__(self) -> Iterator[int]:
        self.count += 1
        return super().__iter__()

    def pop(self, *arguments: Any) -> Any:
        self.count += 1
        return super().pop(*arguments)


async def test_what_was_returned_is_not_published_though_it_is_confirmed(told: Told) -> None:
    publishing = await published(told, 3)
    returned = Basic.Return(reply_code=312, reply_text="NO_ROUTE", exchange="t", routing_key="")
    told.on_return(returned, BasicProperties(headers={}, message_id="1"), b"x")
    told.say(Basic.Ack(3, multiple=True))
    assert [type(error) for error in await answers(publishing)] == [type(None), Unroutable, type(None)]


async def test_of_a_batch_only_what_a_full_queue_refused_has_failed(
    rabbitmq: RabbitMQServer, driver: RabbitMQDriver, topic: str
) -> None:
    full = f"{topic}-full"
    async with connect(f"{rabbitmq.url}?arguments=x-max-length=1,x-overflow=reject-publish") as small:
        await small.declare(full, groups=["g"])
    filled = [Message(full, b"x") for _ in range(50)]
    stored = [error is None for error in await driver.send(filled)].count(True)
    batch = [Message((topic, full)[n % 2], b"x") for n in range(40)]
    failed = [n for n, error in enumerate(await driver.send(batch)) if error is not None]
    assert failed == list(range(1, 40, 2))
    assert (await driver.lag(topic, "g"), await driver.lag(full, "g")) == (20, stored)
    await driver.remove(full)


async def test_a_connection_that_ends_while_a_channel_opens_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection()

    async def ready(_: Link) -> Connection:
        return connection

    monkeypatch.setattr(Link, "ready", ready)
    link = Link(Settings.from_url(BrokerURL.parse("amqp://localhost/")))
    opening = asyncio.create_task(link.channel())
    await asyncio.sleep(0)
    connection.connection_lost(ConnectionResetError("cut"))
    with pytest.raises(ConnectionLost, match="cut"):
        await opening


# --- receiving and settling


async def test_only_what_was_acknowledged_is_gone_when_a_receiver_closes(
    driver: RabbitMQDriver, topic: str
) -> None:
    """Its connection stays open: nothing but the close gives the rest back."""
    subscription = Subscription(topic=topic, group="g")
    first = await collect(driver, subscription)
    await driver.send(numbered(topic, 6))
    taken = await received(first, 5)
    await first.settle([taken[0], taken[2], taken[4]], [])
    await first.close()
    second = await collect(driver, subscription)
    again = await received(second, 3)
    assert values(again) == [b"1", b"3", b"5"]
    await second.settle(again[::-1], [])
    await second.close()
    assert await driver.lag(topic, "g") == 0


async def test_what_was_given_back_comes_again_in_its_order_and_is_no_attempt(
    driver: RabbitMQDriver, topic: str
) -> None:
    known = len(GIVEN_BACK)
    first = await collect(driver, Subscription(topic=topic, group="g"))
    await driver.send(numbered(topic, 20))
    taken = await received(first, 12)
    await first.receiver.quiesce()
    await first.settle([], [Release(delivery) for delivery in taken])
    await first.close()
    second = await collect(driver, Subscription(topic=topic, group="g"))
    again = await received(second, 20)
    assert values(again) == [b"%d" % n for n in range(20)]
    assert {delivery.message.attempt for delivery in again} == {1}
    await second.settle(again[::2], [])
    await second.settle(again[1::2], [])
    assert (cast("RabbitMQReceiver", second.receiver).held, len(GIVEN_BACK)) == (0, known)
    await second.close()


async def test_an_attempt_that_failed_before_the_stop_is_remembered(
    driver: RabbitMQDriver, topic: str
) -> None:
    """More than one: each return counts as one at the broker, so the others travel on a copy."""
    first = await collect(driver, Subscription(topic=topic, group="g"))
    await driver.send(numbered(topic, 1))
    [taken] = await received(first, 1)
    await first.receiver.quiesce()
    await first.settle([], [Release(taken, attempt=4)])
    await first.close()
    second = await collect(driver, Subscription(topic=topic, group="g"))
    [again] = await received(second, 1)
    assert (again.message.attempt, again.message.id) == (4, "0")
    await second.close()


# --- credit


async def test_a_receiver_holds_what_its_credit_says_and_others_get_the_rest(
    driver: RabbitMQDriver, topic: str
) -> None:
    small = await collect(driver, Subscription(topic=topic, group="g"))
    await driver.send(numbered(topic, 10))
    held = await received(small, 3)
    large = await collect(driver, Subscription(topic=topic, group="g"))
    others = await received(large, 7)
    assert sorted(values(held) + values(others)) == [b"%d" % n for n in range(10)]
    await small.close()
    await large.close()


async def test_messages_come_once_and_in_order_while_the_credit_changes(
    driver: RabbitMQDriver, topic: str
) -> None:
    arrived: list[Delivery] = []
    news = asyncio.Event()

    class Taking(Collected):
        def put(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
            arrived.extend(deliveries)
            news.set()
            return ()

    await driver.send(numbered(topic, 2000))
    receiver = await driver.subscribe(Subscription(topic=topic, group="g", max_in_flight=100, inbox=Taking()))
    windows, settled, most = itertools.cycle([1, 2, 40, 100, 7, 90, 3]), 0, 0
    async with asyncio.timeout(60):
        while len(arrived) < 2000 or settled < 2000:
            receiver.credit(next(windows))
            news.clear()
            if settled == len(arrived):
                await news.wait()
            most = max(most, len(arrived) - settled)
            batch = arrived[settled : settled + 50]
            await receiver.settle(batch, [])
            settled += len(batch)
            await asyncio.sleep(0)
    assert values(arrived) == [b"%d" % n for n in range(2000)]
    assert {delivery.message.attempt for delivery in arrived} == {1}
    assert most <= 100
    await receiver.close()


async def test_without_credit_nothing_comes_and_another_receiver_gets_it(
    driver: RabbitMQDriver, topic: str
) -> None:
    paused, other = [await collect(driver, Subscription(topic=topic, group="g")) for _ in range(2)]
    await driver.send(numbered(topic, 1))
    await paused.settle(await received(paused, 1), [])
    cast("RabbitMQReceiver", paused.receiver).credit(0)
    await eventually(lambda: consumers(driver, topic, 0), 5)
    await driver.send(numbered(topic, 3))
    assert len(await received(other, 3)) == 3
    assert not paused.inbox.waiting
    await paused.close()
    await other.close()


async def consumers(driver: RabbitMQDriver, topic: str, expected: int) -> bool:
    facts = await driver.facts(Question(topic=topic, group="g"))
    return facts.groups[0].consumers == expected


async def test_an_ephemeral_group_hears_what_comes_while_it_has_no_credit_and_is_gone_when_it_closes(
    driver: RabbitMQDriver, topic: str, raw: Any
) -> None:
    receiver = await collect(driver, Subscription(topic=topic, group="mine", ephemeral=True))
    await driver.send(numbered(topic, 1))
    await receiver.settle(await received(receiver, 1), [])
    cast("RabbitMQReceiver", receiver.receiver).credit(0)
    await driver.send(numbered(topic, 2))
    assert len(await received(receiver, 2)) == 2
    await receiver.close()
    with pytest.raises(ChannelClosedByBroker, match="NOT_FOUND"):
        raw.queue_declare(f"mine.{topic}", passive=True)


async def test_what_is_ready_and_does_not_come_is_overdue(driver: RabbitMQDriver, topic: str) -> None:
    receiver = await collect(driver, Subscription(topic=topic, group="g"))
    assert await receiver.receiver.overdue() == 0
    await driver.send(numbered(topic, 3))
    assert await receiver.receiver.overdue() == 3
    await received(receiver, 3)
    assert await receiver.receiver.overdue() == 0
    await receiver.close()


# --- copies


def later(topic: str, wait: float, **told: int) -> Later:
    due = datetime.now(UTC) + timedelta(seconds=wait)
    return Later(Message(topic, b"later", id="1", timestamp=due), "g", due, **told)


async def test_a_copy_comes_when_it_is_due_with_its_attempt(driver: RabbitMQDriver, topic: str) -> None:
    receiver = await collect(driver, Subscription(topic=topic, group="g"))
    began = time.monotonic()
    copies = [later(topic, 1.4, attempt=3), later(topic, 0, attempt=7)]
    assert await driver.send_later(copies) == [None, None]
    first, second = await received(receiver, 2)
    assert (first.message.attempt, second.message.attempt) == (7, 3)
    assert time.monotonic() - began >= 0.99
    assert second.due == pytest.approx(copies[0].due.timestamp(), abs=0.01), "the engine waits for the rest"
    await receiver.close()


async def test_a_copy_that_nothing_keeps_is_refused(driver: RabbitMQDriver, topic: str, raw: Any) -> None:
    await driver.send_later([later(topic, 60)])
    for tier in TIERS:
        raw.queue_delete(delay_queue(f"g.{topic}", tier))
    [refused] = await driver.send_later([later(topic, 60)])
    assert isinstance(refused, Unroutable)


async def test_delay_queues_lose_nothing_on_the_way_back(
    driver: RabbitMQDriver, topic: str, raw: Any
) -> None:
    """RabbitMQ refuses to declare a queue again with other arguments than it has."""
    await driver.send_later([later(topic, 60)])
    for tier in TIERS:
        arguments = {
            "x-queue-type": "quorum",
            "x-message-ttl": 1000 * tier,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": f"g.{topic}",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        raw.queue_declare(delay_queue(f"g.{topic}", tier), durable=True, arguments=arguments)
