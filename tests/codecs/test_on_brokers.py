"""What the API says of topics, as it is written there, on the embedded broker and on real servers."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cloudevents.core.bindings import kafka as binding
from cloudevents.core.v1.event import CloudEvent
from google.protobuf.timestamp_pb2 import Timestamp

from tests.codecs.given import Server
from things_kit import Broker, Message, MessageRouter, Reject, Topic, connect
from things_kit.codecs import JSON, Avro, CloudEvents, MemoryRegistry, MessagePack, Protobuf, Registry
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer

kafka = shared(KafkaServer, "kafka")
rabbitmq = shared(RabbitMQServer, "rabbitmq")


class Order(msgspec.Struct):
    id: str
    total: int


class Invoice(msgspec.Struct):
    order: str


class OrderCreated(msgspec.Struct):
    id: str


class OrderCancelled(msgspec.Struct):
    id: str


orders = Topic("orders", Order, key=lambda order: order.id, codec=MessagePack(), headers={"source": "shop"})
invoices = Topic("invoices", Invoice)
shop = Topic[OrderCreated | OrderCancelled](
    "shop", {"order.created": OrderCreated, "order.cancelled": OrderCancelled}, by="type"
)
first = Topic("people", Invoice, version=1)
people = Topic("people", Order, version=2, upcast={1: lambda old: {"id": old["order"], "total": 0}})
events = Topic("events", Order, codec=CloudEvents(source="/shop"))
structured = Topic("structured", Order, codec=CloudEvents(source="/shop", mode="structured"))
registered = Topic("registered", Order, codec=Avro(registry=MemoryRegistry()))


@contextlib.asynccontextmanager
async def started(broker: Broker, *consumers: Any) -> AsyncIterator[None]:
    """All at once, as joining groups takes its time."""
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(each) for each in consumers))
        yield


@pytest.mark.parametrize("name", ["sqlite", "kafka", "rabbitmq"])
async def test_topics_serve_wherever_a_name_does(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/events.db" if name == "sqlite" else request.getfixturevalue(name).url
    seen: asyncio.Queue[tuple[str, Any, Message]] = asyncio.Queue()
    refused: dict[str, Message] = {}

    async def bill(order: Order, message: Message) -> Invoice:
        if order.total < 0 and order.id not in refused:
            refused[order.id] = message
            raise Reject("a negative total")
        await seen.put(("orders", order, message))
        return Invoice(order.id)

    async def take(payload: object, message: Message) -> None:
        await seen.put((message.topic, payload, message))

    router = MessageRouter.of(shop)

    @router.on(OrderCreated)
    async def created(event: OrderCreated, message: Message) -> None:
        await seen.put(("shop", event, message))

    @router.on(OrderCancelled)
    async def cancelled(event: OrderCancelled, message: Message) -> None:
        await seen.put(("shop", event, message))

    others: list[Topic[Any]] = [
        invoices,
        orders.renamed("orders-dlq"),
        people,
        events,
        structured,
        registered,
    ]
    async with asyncio.timeout(100), connect(f"{url}?topic_prefix={uuid.uuid4().hex[:8]}-") as broker:
        await broker.declare(orders, groups=["billing"])
        producer = broker.producer()
        async with started(
            broker,
            broker.consumer(orders, group="billing", handler=bill, publish=invoices),
            broker.consumer(shop, group="shop", handler=router),
            broker.consumer(others, group="audit", handler=take),
        ):
            sent = orders.message(Order("bad", -1))
            await producer.publish(orders, Order("o-1", 5))
            await producer.publish_batch(orders.messages([Order("o-2", 7), Order("bad", -1)]))
            await producer.publish(shop, OrderCreated("c"))
            await producer.publish(shop, OrderCancelled("c"))
            await producer.publish(first, Invoice("old"))
            await producer.publish(people, Order("new", 1))
            for topic in (events, structured, registered):
                await producer.publish(topic, Order("e", 2), key="k", headers={"mine": "x"}, id="e-1")
            found = [await seen.get() for _ in range(12)]
            while not await broker.replay("orders-dlq"):
                pass  # who audits may have seen it before the queue that is replayed had it
            again = [await seen.get() for _ in range(2)]
        await broker.remove(orders, group="billing")

    payloads = sorted((topic, repr(payload)) for topic, payload, _ in found)
    assert payloads == sorted((topic, repr(payload)) for topic, payload in [
        ("orders", Order("o-1", 5)), ("orders", Order("o-2", 7)), ("orders-dlq", Order("bad", -1)),
        ("invoices", Invoice("o-1")), ("invoices", Invoice("o-2")), ("shop", OrderCreated("c")), ("shop", OrderCancelled("c")),
        ("people", Order("old", 0)), ("people", Order("new", 1)),
        *[(topic, Order("e", 2)) for topic in ("events", "structured", "registered")],
    ])  # fmt: skip
    assert {topic: payload for topic, payload, _ in again} == {
        "orders": Order("bad", -1),
        "invoices": Invoice("bad"),
    }
    (dead,) = (message for topic, _, message in found if topic == "orders-dlq")
    (replayed,) = (message for topic, _, message in again if topic == "orders")
    for message in (refused["bad"], dead, replayed):
        assert (message.value, message.key, message.id) == (sent.value, b"bad", refused["bad"].id)
        assert sent.headers.items() <= message.headers.items()
    for where, _, message in found:
        if where in {"events", "structured", "registered"}:
            assert (message.key, message.id, message.headers["mine"]) == (b"k", "e-1", "x")
        if where in {"events", "structured"}:
            assert (message.headers["ce-id"], message.headers["ce-source"]) == ("e-1", "/shop")


def read_raw(url: str, topics: list[str]) -> dict[str, Any]:
    """The first message of each topic, as Kafka's own client reads it."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition  # noqa: PLC0415 - of this test

    servers = url.partition("://")[2].partition("/")[0]
    consumer = Consumer({"bootstrap.servers": servers, "group.id": uuid.uuid4().hex})
    places = [
        TopicPartition(topic, partition, OFFSET_BEGINNING)
        for topic in topics
        for partition in consumer.list_topics(topic, 30).topics[topic].partitions
    ]
    consumer.assign(places)
    found: dict[str, Any] = {}
    try:
        while len(found) < len(topics):
            message = consumer.poll(60)
            assert message is not None
            assert message.error() is None, message.error()
            found.setdefault(str(message.topic()), message)
    finally:
        consumer.close()
    return found


def write_raw(url: str, messages: list[tuple[str, bytes, dict[str, Any]]]) -> None:
    from confluent_kafka import Producer  # noqa: PLC0415 - of this test

    producer = Producer({"bootstrap.servers": url.partition("://")[2].partition("/")[0]})
    for topic, value, headers in messages:
        producer.produce(topic, value, headers=headers)
    assert producer.flush(60) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_on_kafka_other_programs_write_and_read_the_same(kafka: KafkaServer, server: Server) -> None:
    """confluent-kafka's own serializers and the SDK of CloudEvents, on the wire."""
    pytest.importorskip("authlib", reason="confluent-kafka's extra schemaregistry is not installed")
    confluent = pytest.importorskip("confluent_kafka.schema_registry")
    from confluent_kafka.schema_registry import avro, json_schema, protobuf  # noqa: PLC0415 - as above
    from confluent_kafka.serialization import MessageField, SerializationContext  # noqa: PLC0415 - as above

    prefix, registry = uuid.uuid4().hex[:8], Registry(server.url)
    theirs = confluent.SchemaRegistryClient({"url": server.url})
    options = {"subject.name.strategy": confluent.topic_subject_name_strategy}
    frozen = {**options, "auto.register.schemas": False}
    order, moment = Order("o-1", 5), Timestamp(seconds=5)
    topics: dict[str, Topic[Any]] = {
        "avro": Topic(f"{prefix}-avro", Order, codec=Avro(registry=registry)),
        "json": Topic(f"{prefix}-json", Order, codec=JSON(registry=registry)),
        "protobuf": Topic(f"{prefix}-protobuf", Timestamp, codec=Protobuf(registry=registry)),
        "event": Topic(f"{prefix}-event", Order, codec=CloudEvents(source="/shop")),
    }
    payloads: dict[str, Any] = {"avro": order, "json": order, "protobuf": moment, "event": order}
    names = {topic.name: kind for kind, topic in topics.items()}
    seen: asyncio.Queue[tuple[str, Any, Message]] = asyncio.Queue()

    async def take(payload: object, message: Message) -> None:
        await seen.put((names[message.topic], payload, message))

    def plain(payload: Any, _: Any) -> Any:
        return msgspec.to_builtins(payload)

    def schema(kind: str) -> str:
        codec: Any = topics[kind].codec
        text: str = codec.subjects(topics[kind])[None].schema
        return text

    def written() -> dict[str, bytes]:
        """By their serializers."""
        writers: dict[str, Any] = {
            "avro": avro.AvroSerializer(theirs, schema("avro"), plain, frozen),
            "json": json_schema.JSONSerializer(schema("json"), theirs, plain, frozen),
            "protobuf": protobuf.ProtobufSerializer(
                Timestamp, theirs, {**options, "use.deprecated.format": False}
            ),
        }
        return {
            kind: write(payloads[kind], SerializationContext(topics[kind].name, MessageField.VALUE))
            for kind, write in writers.items()
        }

    async with asyncio.timeout(100), connect(kafka.url) as broker:
        for topic in topics.values():
            await broker.producer().publish(topic, payloads[names[topic.name]])
        ours = await asyncio.to_thread(read_raw, kafka.url, list(names))
        raw = {names[name]: message for name, message in ours.items()}
        made = await asyncio.to_thread(written)
        assert raw["avro"].value() == made["avro"]
        assert raw["protobuf"].value() == made["protobuf"]
        assert (raw["json"].value()[:5], json.loads(raw["json"].value()[5:])) == (
            made["json"][:5], json.loads(made["json"][5:]),
        )  # fmt: skip
        event = binding.from_kafka_event(
            binding.KafkaMessage(dict(raw["event"].headers()), None, raw["event"].value())
        )
        assert (event.get_source(), event.get_type(), event.get_data()) == (
            "/shop", "Order", msgspec.to_builtins(order),
        )  # fmt: skip
        foreign = binding.to_binary_event(
            CloudEvent({"id": "f", "source": "/theirs", "type": "Order", "datacontenttype": "application/json"},
                       msgspec.to_builtins(order)),
        )  # fmt: skip
        sent: list[tuple[str, bytes, dict[str, Any]]] = [
            *[(topics[kind].name, value, {}) for kind, value in made.items()],
            (topics["event"].name, foreign.value, foreign.headers),
        ]
        await asyncio.to_thread(write_raw, kafka.url, sent)
        async with broker.consumer(list(topics.values()), group="g", handler=take):
            found = [await seen.get() for _ in range(8)]

    for kind, payload, _ in found:
        assert payload == payloads[kind]
    assert sorted(kind for kind, _, _ in found) == sorted([*topics] * 2)
    assert {message.headers["ce-source"] for kind, _, message in found if kind == "event"} == {
        "/shop",
        "/theirs",
    }
