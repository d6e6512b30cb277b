"""The registry client against a real registry."""

import asyncio
import contextlib
import uuid
from typing import Any

import msgspec
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.codecs.test_references import FILES, Address, Country, generated
from things_kit import ConfigError, Message, Topic, connect
from things_kit.codecs import JSON, Avro, Protobuf, Registry, Unprepared, registry, schemas
from things_kit.codecs.contract import contract_decoder
from things_kit.codecs.schemas import Away
from things_kit.testing.servers.fixtures import own
from things_kit.testing.servers.registry import RegistryServer

server = own(RegistryServer)


class Order(msgspec.Struct):
    id: str
    total: int = 0


class Parcel(msgspec.Struct):
    id: str
    to: Address


PARCEL = Parcel("p-1", Address("Main Street", Country.CH))


@pytest.mark.parametrize(
    ("kind", "payload"), [(Avro, Order("a", 5)), (JSON, Order("a", 5)), (Protobuf, Timestamp(seconds=5))]
)
async def test_a_value_is_read_by_whoever_knows_nothing_yet(
    server: RegistryServer, kind: Any, payload: Any
) -> None:
    name = f"t-{uuid.uuid4().hex}"
    topic: Topic[Any] = Topic(name, type(payload), codec=kind(registry=Registry(server.url)))
    await topic.prepare()
    message = topic.message(payload)
    other: Topic[Any] = Topic(name, type(payload), codec=kind(registry=Registry(server.url)))
    decode = contract_decoder(other, type(payload), "h")
    try:
        assert decode(message) == payload
    except Unprepared as unprepared:
        await unprepared.awaitable
        assert decode(message) == payload
    reader: Topic[Any] = Topic(name, type(payload), codec=kind(registry=Registry(server.url, register=False)))
    await reader.prepare()
    assert reader.message(payload).value == message.value


async def test_an_incompatible_schema_is_refused(server: RegistryServer) -> None:
    name = f"t-{uuid.uuid4().hex}"
    schemas = Registry(server.url, compatibility="BACKWARD")
    await Topic(name, Order, codec=Avro(registry=schemas)).prepare()
    changed: Any = msgspec.defstruct("Order", [("id", int)])
    with pytest.raises(ConfigError, match="refused the schema"):
        await Topic(name, changed, codec=Avro(registry=schemas)).prepare()


async def test_schemas_refer_to_others(server: RegistryServer) -> None:
    name = f"t-{uuid.uuid4().hex}"
    kind = generated(*FILES)["Order"]
    topics: list[tuple[Topic[Any], Any]] = []
    made = [Registry(server.url) for _ in range(3)]
    avro = {f"{name}-address": Address, f"{name}-country": Country}
    json = {f"{name}-address-json": Address, f"{name}-country-json": Country}
    codecs: list[tuple[Any, Any, Any]] = [
        (Avro(references=avro, registry=made[0]), Parcel, PARCEL),
        (JSON(references=json, registry=made[1]), Parcel, PARCEL),
        (Protobuf(registry=made[2]), kind, kind(to={"street": "s"})),
    ]
    for codec, of, payload in codecs:
        registry = codec.registry
        topic: Topic[Any] = Topic(f"{name}-{type(codec).__name__}", of, codec=codec)
        await topic.prepare()
        topics.append((topic, payload))
        for subject in topic.codec.subjects(topic).values():  # type: ignore[union-attr] # both have it
            assert await registry.compatible(subject) == (True, "")
    message = topics[0][0].message(PARCEL)
    stranger: Topic[Any] = Topic("t", Parcel, codec=Avro(registry=Registry(server.url)))
    decode = contract_decoder(stranger, dict, "h")
    with pytest.raises(Unprepared) as raised:
        decode(message)
    await raised.value.awaitable
    assert decode(message) == msgspec.to_builtins(PARCEL)
    for topic, payload in topics:
        assert contract_decoder(topic, type(payload), "h")(topic.message(payload)) == payload


class Watched(Registry):
    """A registry that counts how often it was found away."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.away = asyncio.Semaphore(0)

    async def ask(self, *question: Any) -> Any:
        try:
            return await super().ask(*question)
        except Away:
            self.away.release()
            raise

    async def found_away(self, times: int) -> None:
        for _ in range(times):
            await self.away.acquire()


@pytest.mark.parametrize("how", ["stands still", "is killed"])
async def test_publishers_and_consumers_wait_for_a_registry_that(
    server: RegistryServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(registry, "SLOW", 0.3)
    monkeypatch.setattr(schemas, "PATIENCE", 90.0)  # a loaded machine takes its time to start it
    name = f"t-{uuid.uuid4().hex}"
    writer = Topic(name, Order, key="id", codec=Avro(registry=Registry(server.url)))
    other = Topic(name, Order, key="id", codec=Avro(namespace="new", registry=Registry(server.url)))
    seen: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()
    reading = [Watched(server.url), Watched(server.url)]

    async def handle(order: Order, message: Message) -> None:
        await seen.put((order.id, message.value[:5].hex(), message.attempt))

    async with connect("memory://?publish_timeout=90") as broker, contextlib.AsyncExitStack() as consumers:
        for group, watched in enumerate(reading):
            reader = Topic(name, Order, codec=Avro(registry=watched))
            consumer = broker.consumer(reader, group=f"g{group}", handler=handle)
            await consumers.enter_async_context(consumer)
            watched._stored.clear()
        await writer.prepare()
        if how == "is killed":
            server.kill()
        else:
            server.pause()
        try:
            await broker.producer().publish_batch(writer.messages([Order(str(n), 5) for n in range(10)]))
            waiting = asyncio.create_task(broker.producer().publish(other, Order("last")))
            for watched in reading:
                await watched.found_away(2)
            assert seen.empty()
            assert not waiting.done()
        finally:
            await asyncio.to_thread(server.start if how == "is killed" else server.resume)
        await waiting
        handled = sorted([await seen.get() for _ in range(22)])
        assert [order for order, _, _ in handled] == sorted([*map(str, range(10)), "last"] * 2)
        assert {attempt for _, _, attempt in handled} == {1}
        assert len({schema for _, schema, _ in handled}) == 2
        assert await broker.lag(f"{name}-dlq", "dead-letters") == 0
