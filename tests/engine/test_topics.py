"""Topics in producers and consumers: typed both ways, results published before the acknowledgement, codecs prepared."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.engine.scenario import until, virtual
from things_kit import (
    Batch,
    BrokerUnavailable,
    ClosedError,
    ConfigError,
    DecodeError,
    Message,
    Producer,
    RetryPolicy,
    Topic,
    connect,
)
from things_kit.codecs import Unprepared
from things_kit.testing import MockProducer
from things_kit.testing.stub import BARE, StubDriver, broker_of


class Order(msgspec.Struct):
    id: str
    total: int = 0


class Invoice(msgspec.Struct):
    order: str


class Created(msgspec.Struct):
    id: str


orders = Topic("orders", Order, key="id")
invoices = Topic("invoices", Invoice)
ONCE = RetryPolicy(attempts=1)


def sent(driver: StubDriver, topic: str) -> list[Message]:
    return driver.topics.get(topic, [])


def acknowledged(driver: StubDriver, count: int) -> bool:
    return len(driver.acknowledged) >= count


# --- producing


async def test_a_payload_is_published_by_its_contract() -> None:
    handled: asyncio.Queue[tuple[Order, Message]] = asyncio.Queue()

    async def handle(order: Order, message: Message) -> None:
        await handled.put((order, message))

    async with connect("memory://") as broker:
        producer: Producer = broker.producer()
        await broker.declare(orders, ["g"])
        await producer.publish(orders, Order("a", 5), headers={"x": "y"}, id="one")
        await producer.publish_batch(orders.messages([Order("b")]))
        assert await broker.lag(orders, "g") == 2
        async with broker.consumer(orders, group="g", handler=handle):
            seen = [await handled.get(), await handled.get()]
    assert [order for order, _ in seen] == [Order("a", 5), Order("b")]
    first = seen[0][1]
    assert (first.key, first.id) == (b"a", "one")
    assert first.headers == {"content-type": "application/json", "x": "y"}


@pytest.mark.parametrize(
    "call",
    [
        lambda producer: producer.publish(orders),
        lambda producer: producer.publish(orders, Created("x")),
        lambda producer: producer.publish(Message("t", b""), key="x"),
        lambda producer: producer.publish(Message("t", b""), id="x"),
        lambda producer: producer.publish(Message("t", b""), Order("x")),
    ],
)
async def test_arguments_that_do_not_go_together_are_a_type_error(call: Callable[[Any], Any]) -> None:
    async with connect("memory://") as broker:
        for producer in (broker.producer(), MockProducer()):
            with pytest.raises(TypeError):
                await call(producer)


async def test_a_mock_producer_keeps_what_a_topic_makes() -> None:
    producer = MockProducer()
    await producer.publish(orders, Order("a"), key=None)
    assert producer.messages == [orders.message(Order("a"), key=None)]


async def test_replay_takes_the_name_of_a_dead_letter_and_may_go_to_a_topic() -> None:
    async with connect("memory://") as broker:
        with pytest.raises(
            ConfigError, match="replay takes the name of a dead letter, not the contract Topic"
        ):
            await broker.replay(orders)  # type: ignore[arg-type] # that is what is tested
        await broker.declare("orders-dlq", ["dead-letters"])
        await broker.producer().publish(orders.renamed("orders-dlq"), Order("a"))
        assert await broker.replay("orders-dlq", to=orders) == 1
        await broker.remove(orders)


# --- consuming


@virtual
async def test_each_message_is_decoded_by_the_contract_of_its_topic() -> None:
    shop = Topic[Created | Order]("shop", {"created": Created, "order": Order}, by="type")
    driver, seen = StubDriver(BARE), list[Any]()

    async def handle(event: Order | Created) -> None:
        seen.append(event)

    driver.put(orders.message(Order("a"), id="1"), shop.message(Created("b"), id="2"))
    async with broker_of(driver) as broker, broker.consumer([orders, shop], group="g", handler=handle):
        await until(lambda: len(seen) == 2)
    assert sorted(seen, key=str) == [Created("b"), Order("a")]


@virtual
async def test_names_and_contracts_go_together_in_one_consumer() -> None:
    driver, seen = StubDriver(BARE), list[Any]()

    async def handle(order: Order) -> None:
        seen.append(order.id)

    driver.put(orders.message(Order("a"), id="1"), Message("others", b'{"id": "b"}', id="2"))
    async with broker_of(driver) as broker, broker.consumer([orders, "others"], group="g", handler=handle):
        await until(lambda: len(seen) == 2)
    assert sorted(seen) == ["a", "b"]


async def test_a_handler_of_another_type_is_refused_when_the_consumer_is_made() -> None:
    async def handle(created: Created) -> None:
        pass

    async with connect("memory://") as broker:
        with pytest.raises(ConfigError, match=r"handle takes Created, but the topic 'orders' carries Order"):
            broker.consumer(["x", orders], group="g", handler=handle)
        with pytest.raises(ConfigError, match="a consumer's topics must differ"):
            broker.consumer(["orders", orders], group="g", handler=handle)


@virtual
async def test_batches_are_decoded_by_contract_and_what_cannot_be_fails_alone() -> None:
    driver, seen = StubDriver(BARE), list[Any]()

    async def handle(batch: list[Order]) -> None:
        seen.extend(batch)

    driver.put(
        orders.message(Order("a"), id="1"),
        Message("orders", b"?", id="2"),
        orders.message(Order("c"), id="3"),
    )
    async with (
        broker_of(driver) as broker,
        broker.consumer(orders, group="g", handler=handle, batch=Batch(), retry=ONCE),
    ):
        await until(lambda: len(driver.acknowledged) == 3)
    assert seen == [Order("a"), Order("c")]
    assert [message.id for message in sent(driver, "orders-dlq")] == ["2"]


@virtual
async def test_a_topic_of_lists_is_handled_list_by_list() -> None:
    topic, seen = Topic("lists", list[Order]), list[Any]()
    driver = StubDriver(BARE)

    async def handle(several: list[Order]) -> None:
        seen.append(several)

    driver.put(topic.message([Order("a"), Order("b")], id="1"))
    async with broker_of(driver) as broker, broker.consumer(topic, group="g", handler=handle):
        await until(lambda: seen)
    assert seen == [[Order("a"), Order("b")]]


# --- publish=


async def bill(order: Order) -> Any:
    match order.id:
        case "none":
            return None
        case "several":
            return [Invoice("1"), Invoice("2")]
        case "wrong":
            return Order("x")
        case "fails":
            raise ValueError("once")
        case _:
            return Invoice(order.id)


@virtual
async def test_what_a_handler_returns_is_published_before_the_acknowledgement() -> None:
    driver = StubDriver(BARE)
    driver.put(*(orders.message(Order(name), id=name) for name in ("one", "none", "several")))
    async with (
        broker_of(driver) as broker,
        broker.consumer(orders, group="g", handler=bill, publish=invoices),
    ):
        await until(lambda: len(driver.acknowledged) == 3)
    results = sent(driver, "invoices")
    assert sorted(message.value for message in results) == [
        b'{"order":"%s"}' % n for n in (b"1", b"2", b"one")
    ]
    assert sorted(message.key or b"" for message in results) == [b"one", b"several", b"several"]
    assert len({message.id for message in results}) == 3


@virtual
async def test_the_ids_of_results_tell_duplicates() -> None:
    ids: list[list[str | None]] = []
    for _ in range(2):
        driver = StubDriver(BARE)
        driver.put(orders.message(Order("several"), id="one"))
        async with broker_of(driver) as broker:
            for count, group in enumerate(("g", "h"), 1):
                async with broker.consumer(orders, group=group, handler=bill, publish=invoices):
                    await until(functools.partial(acknowledged, driver, count))
        ids.append([message.id for message in sent(driver, "invoices")])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0])


@virtual
async def test_the_key_of_a_result_is_that_of_its_topic_where_it_has_one() -> None:
    driver = StubDriver(BARE)
    keyed = Topic("invoices", Invoice, key=lambda invoice: "k-" + invoice.order)
    driver.put(orders.message(Order("a"), id="1"))
    async with broker_of(driver) as broker, broker.consumer(orders, group="g", handler=bill, publish=keyed):
        await until(lambda: driver.acknowledged)
    assert [message.key for message in sent(driver, "invoices")] == [b"k-a"]


@virtual
async def test_a_list_is_one_result_where_the_topic_carries_lists() -> None:
    driver, topic = StubDriver(BARE), Topic("invoices", list[Invoice])
    driver.put(orders.message(Order("several"), id="1"))
    async with broker_of(driver) as broker, broker.consumer(orders, group="g", handler=bill, publish=topic):
        await until(lambda: driver.acknowledged)
    assert [message.value for message in sent(driver, "invoices")] == [b'[{"order":"1"},{"order":"2"}]']


@virtual
async def test_a_result_of_another_type_is_as_reject() -> None:
    driver = StubDriver(BARE)
    driver.put(orders.message(Order("wrong"), id="1"))
    async with (
        broker_of(driver) as broker,
        broker.consumer(orders, group="g", handler=bill, publish=invoices),
    ):
        await until(lambda: driver.acknowledged)
    (dead,) = sent(driver, "orders-dlq")
    assert dead.headers["error-type"] == "things_kit.messaging.outcomes.Reject"
    assert "returned what the topic 'invoices' cannot carry" in dead.headers["error"]
    assert not sent(driver, "invoices")


@virtual
async def test_a_result_that_is_refused_for_good_is_as_reject() -> None:
    driver, topic = StubDriver(BARE), Topic("invoices", bytes)

    async def too_large(order: Order) -> bytes:
        return b"x" * (driver.capabilities.max_message_bytes or 0)

    driver.capabilities = msgspec.structs.replace(driver.capabilities, max_message_bytes=1000)
    driver.put(orders.message(Order("a"), id="1"))
    async with (
        broker_of(driver) as broker,
        broker.consumer(orders, group="g", handler=too_large, publish=topic),
    ):
        await until(lambda: driver.acknowledged)
    (dead,) = sent(driver, "orders-dlq")
    assert "its result was refused: a message for 'invoices' has" in dead.headers["error"]


async def test_results_of_batches_and_to_what_is_no_topic_are_refused() -> None:
    async with connect("memory://") as broker:
        with pytest.raises(ConfigError, match="publish= takes what the handler of one message returns"):
            broker.consumer("t", group="g", handler=bill, publish=invoices, batch=Batch())
        with pytest.raises(ConfigError, match="publish must be a Topic; it is 'invoices'"):
            broker.consumer("t", group="g", handler=bill, publish="invoices")  # type: ignore[call-overload] # tested


@virtual
async def test_middleware_that_drops_what_the_handler_returns_does_not_drop_results() -> None:
    driver = StubDriver(BARE)

    def drops(handle: Any) -> Any:
        async def wrapped(message: Message) -> None:
            await handle(message)

        return wrapped

    driver.put(orders.message(Order("a"), id="1"))
    async with (
        broker_of(driver) as broker,
        broker.consumer(orders, group="g", handler=bill, publish=invoices, middleware=[drops]),
    ):
        await until(lambda: driver.acknowledged)
    assert len(sent(driver, "invoices")) == 1


async def test_a_plain_function_may_return_results_too() -> None:
    seen: asyncio.Queue[Invoice] = asyncio.Queue()

    async def keep(invoice: Invoice) -> None:
        await seen.put(invoice)

    def in_a_thread(order: Order) -> Invoice:
        return Invoice(order.id)

    async with (
        connect("memory://") as broker,
        broker.consumer(invoices, group="g", handler=keep),
        broker.consumer(orders, group="g", handler=in_a_thread, publish=invoices),
    ):
        await broker.producer().publish(orders, Order("a"))
        assert await seen.get() == Invoice("a")


# --- codecs that need something from elsewhere


class Remote:
    """A codec whose schema is elsewhere: what `answer` does is what fetching it does."""

    content_type = "application/x-remote"

    def __init__(self) -> None:
        self.prepared = self.fetched = 0
        self.failures: list[Exception] = []
        self.has = False

    async def fetch(self) -> None:
        self.fetched += 1
        await asyncio.sleep(5)
        if self.failures:
            raise self.failures.pop(0)
        self.has = True

    def encoder(self, topic: Topic[Any]) -> Any:
        return lambda payload: (msgspec.json.encode(payload), {})

    def decoder(self, kind: Any, topic: Topic[Any] | None) -> Any:
        def decode(message: Message) -> Any:
            if not self.has:
                raise Unprepared(self.fetch())
            return msgspec.json.decode(message.value, type=kind)

        return decode

    async def prepare(self, topic: Topic[Any]) -> None:
        self.prepared += 1
        if self.failures:
            raise self.failures.pop(0)


@virtual
async def test_what_a_decoder_needs_is_awaited_beside_the_workers_and_no_attempt_is_counted() -> None:
    codec, driver, seen = Remote(), StubDriver(BARE), list[tuple[str, int]]()
    topic = Topic("orders", Order, key="id", codec=codec)

    async def handle(order: Order, message: Message) -> None:
        seen.append((order.id + str(order.total), message.attempt))

    driver.put(*(topic.message(Order("a", n), id=str(n)) for n in range(3)))
    async with broker_of(driver) as broker, broker.consumer(topic, group="g", handler=handle):
        await until(lambda: codec.fetched)
        assert not driver.acknowledged
        await until(lambda: len(driver.acknowledged) == 3)
    assert seen == [("a0", 1), ("a1", 1), ("a2", 1)]


@virtual
async def test_an_outage_of_what_a_decoder_needs_is_waited_out() -> None:
    codec, driver, seen = Remote(), StubDriver(BARE), list[int]()
    topic = Topic("orders", Order, codec=codec)

    async def handle(order: Order, message: Message) -> None:
        seen.append(message.attempt)

    async with broker_of(driver) as broker, broker.consumer(topic, group="g", handler=handle, retry=ONCE):
        codec.failures = [OSError("away") for _ in range(20)]
        driver.put(topic.message(Order("a"), id="1"))
        await until(lambda: driver.acknowledged)
    assert seen == [1]
    assert not sent(driver, "orders-dlq")


@virtual
async def test_a_decode_error_of_what_a_decoder_needs_is_the_message_s() -> None:
    codec, driver = Remote(), StubDriver(BARE)
    topic = Topic("orders", Order, codec=codec)

    async def handle(order: Order) -> None:
        raise AssertionError("it cannot be decoded")

    async with broker_of(driver) as broker, broker.consumer(topic, group="g", handler=handle):
        codec.failures = [DecodeError("the registry has no schema 7")]
        driver.put(topic.message(Order("a"), id="1"))
        await until(lambda: driver.acknowledged)
    (dead,) = sent(driver, "orders-dlq")
    assert dead.headers["error"] == "the registry has no schema 7"
    assert dead.value == topic.message(Order("a")).value


@virtual
async def test_a_batch_waits_as_one_for_what_its_messages_need() -> None:
    codec, driver, seen = Remote(), StubDriver(BARE), list[str]()
    topic = Topic("orders", Order, key=lambda order: "one", codec=codec)

    async def handle(batch: list[Order]) -> None:
        seen.extend(order.id for order in batch)

    driver.put(*(topic.message(Order(str(n)), id=str(n)) for n in range(5)))
    async with (
        broker_of(driver) as broker,
        broker.consumer(topic, group="g", handler=handle, batch=Batch(size=3)),
    ):
        await until(lambda: len(driver.acknowledged) == 5)
    assert seen == ["0", "1", "2", "3", "4"]


@virtual
async def test_a_stop_while_a_decoder_waits_gives_the_message_back() -> None:
    codec, driver = Remote(), StubDriver(BARE)
    topic = Topic("orders", Order, codec=codec)

    async def handle(order: Order) -> None:
        raise AssertionError("it is not decoded in time")

    driver.put(topic.message(Order("a"), id="1"))
    async with broker_of(driver) as broker:
        async with broker.consumer(topic, group="g", handler=handle):
            await until(lambda: codec.fetched)
        assert not driver.acknowledged
        assert len(driver.released) == 1
        await asyncio.sleep(10)


@virtual
async def test_publish_and_consumers_prepare_a_topic_once() -> None:
    codec, driver = Remote(), StubDriver(BARE)
    topic = Topic("orders", Order, codec=codec)

    async def handle(order: Order) -> Order:
        return order

    async with broker_of(driver) as broker:
        for _ in range(3):
            await broker.producer().publish(topic, Order("a"))
        assert codec.prepared == 1
        async with broker.consumer("x", group="g", handler=handle, publish=topic.renamed("y")):
            assert codec.prepared == 2


@virtual
async def test_publish_waits_for_what_a_topic_needs_as_for_a_broker() -> None:
    codec, driver = Remote(), StubDriver(BARE)
    topic = Topic("orders", Order, codec=codec)
    async with broker_of(driver) as broker:
        codec.failures = [BrokerUnavailable("the registry is away") for _ in range(3)]
        await broker.producer().publish(topic, Order("a"))
        codec.failures = [BrokerUnavailable("the registry is away") for _ in range(1000)]
        with pytest.raises(
            BrokerUnavailable, match=r"the topic 'y' could not be prepared within .* the registry is away"
        ):
            await broker.producer().publish(topic.renamed("y"), Order("a"))
        producer = broker.producer()
        await producer.close()
        with pytest.raises(ClosedError):
            await producer.publish(topic, Order("a"))
