"""What the driver tells RabbitMQ, and when: confirms, prefetching, acknowledgements, and putting off."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

pytest.importorskip("pika")

import pika
from pika.exceptions import StreamLostError
from pika.spec import Basic, BasicProperties

from things_kit import Message, PublishError, connect
from things_kit.brokers.rabbitmq.delays import TIERS, delay_queue
from things_kit.brokers.rabbitmq.driver import RabbitMQDriver
from things_kit.brokers.rabbitmq.link import Link
from things_kit.brokers.rabbitmq.options import Settings
from things_kit.brokers.rabbitmq.publisher import Publisher, Unroutable
from things_kit.brokers.rabbitmq.receiver import RabbitMQReceiver
from things_kit.brokers.rabbitmq.wire import Letter
from things_kit.engine.adapter import Adapted
from things_kit.engine.collected import Collecting, collect
from things_kit.engine.driver import ConnectionLost, Release, Subscription
from things_kit.engine.url import BrokerURL
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
        self.confirm: Callable[[Any], None]
        self.give_back: Callable[..., None]
        self.publisher: Publisher
        self.raw = SimpleNamespace(
            channel_number=1, add_on_return_callback=self._returns_to, confirm_delivery=None
        )
        self.connection = SimpleNamespace(most=100_000, emit=lambda _: self.sent.set())

    def _returns_to(self, callback: Callable[..., None]) -> None:
        self.give_back = callback

    async def channel(self) -> "Told":
        return self

    async def until_unblocked(self, within: float) -> None:
        pass

    def on_lost(self, listener: Callable[[Exception], object]) -> None:
        pass

    async def ask(self, _: Any, callback: Callable[[Any], None]) -> None:
        self.confirm = callback

    def say(self, method: Basic.Ack | Basic.Nack) -> None:
        self.confirm(SimpleNamespace(method=method))


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
    told.give_back(None, returned, BasicProperties(headers={}, message_id="1"), b"x")
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
    """And not pika's error, over which a consumer would stop instead of connecting again."""
    closing: list[Callable[[Any, Exception], None]] = []
    connection = SimpleNamespace(
        channel=lambda on_open_callback: SimpleNamespace(add_on_close_callback=closing.append)
    )

    async def ready(_: Link) -> Any:
        return connection

    monkeypatch.setattr(Link, "ready", ready)
    link = Link(Settings.from_url(BrokerURL.parse("amqp://localhost/")))
    opening = asyncio.create_task(link.channel())
    while not closing:  # noqa: ASYNC110 - the next turns of the loop
        await asyncio.sleep(0)
    closing[0](None, StreamLostError("cut"))
    with pytest.raises(ConnectionLost, match="cut"):
        await opening


# --- receiving and settling


async def test_only_what_was_acknowledged_is_gone_when_a_receiver_closes(
    driver: RabbitMQDriver, topic: str
) -> None:
    """Its connection stays open: nothing but the close gives the rest back."""
    subscription = Subscription(topic=topic, group="g")
    first = await collect(cast("Any", driver), subscription)
    await driver.send(numbered(topic, 6))
    taken = await received(first, 5)
    await first.settle([taken[0], taken[2], taken[4]], [])
    await first.close()
    second = await collect(cast("Any", driver), subscription)
    again = await received(second, 3)
    assert values(again) == [b"1", b"3", b"5"]
    await second.settle(again[::-1], [])
    await second.close()
    assert await driver.lag(topic, "g") == 0


async def test_what_came_back_and_was_acknowledged_leaves_nothing_in_a_receiver(
    driver: RabbitMQDriver, topic: str
) -> None:
    subscription = Subscription(topic=topic, group="g")
    first = await collect(cast("Any", driver), subscription)
    await driver.send(numbered(topic, 20))
    await received(first, 20)
    await first.close()
    second = await collect(cast("Any", driver), subscription)
    inner = cast("RabbitMQReceiver", cast("Adapted", second.receiver).inner)
    again = await received(second, 20)
    assert len(inner._counts) == inner.held == 20
    await second.settle(again[::2], [])
    await second.settle(again[1::2], [])
    assert (inner._counts, inner.held) == ({}, 0)
    await second.close()


async def test_what_a_receiver_may_not_hold_goes_to_others(driver: RabbitMQDriver, topic: str) -> None:
    small = await collect(cast("Any", driver), Subscription(topic=topic, group="g", max_in_flight=3))
    await driver.send(numbered(topic, 10))
    held = await received(small, 3)
    large = await collect(cast("Any", driver), Subscription(topic=topic, group="g"))
    others = await received(large, 7)
    assert sorted(values(held) + values(others)) == [b"%d" % n for n in range(10)]
    await small.close()
    await large.close()


# --- putting off


async def put_off(receiver: Collecting) -> None:
    [taken] = await received(receiver, 1)
    await receiver.settle([], [Release(taken, delay=60, attempt=2, aside=True)])


async def test_a_message_is_kept_until_its_delayed_copy_is_confirmed(
    driver: RabbitMQDriver, topic: str, raw: Any
) -> None:
    subscription = Subscription(topic=topic, group="g")
    first = await collect(cast("Any", driver), subscription)
    await driver.send([Message(topic, b"put off", id="1")])
    await put_off(first)
    for tier in TIERS:
        raw.queue_delete(delay_queue(f"g.{topic}", tier))
    await driver.send([Message(topic, b"x", id="2")])
    await put_off(first)
    await first.close()
    second = await collect(cast("Any", driver), subscription)
    assert values(await received(second, 1)) == [b"x"]
    await second.close()


async def test_a_message_is_kept_where_there_can_be_no_delay_queue(
    driver: RabbitMQDriver, topic: str, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = Subscription(topic=topic, group="g")
    raw.queue_declare(delay_queue(f"g.{topic}", TIERS[0]))
    await driver.send([Message(topic, b"x", id="1")])
    first = await collect(cast("Any", driver), subscription)
    await put_off(first)
    assert "1 messages wait in memory" in caplog.text
    await first.close()
    second = await collect(cast("Any", driver), subscription)
    assert values(await received(second, 1)) == [b"x"]
    await second.close()
    raw.queue_delete(delay_queue(f"g.{topic}", TIERS[0]))


async def test_delay_queues_lose_nothing_on_the_way_back(
    driver: RabbitMQDriver, topic: str, raw: Any
) -> None:
    """RabbitMQ refuses to declare a queue again with other arguments than it has."""
    receiver = await collect(cast("Any", driver), Subscription(topic=topic, group="g"))
    await driver.send([Message(topic, b"x", id="1")])
    await put_off(receiver)
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
    await receiver.close()
