"""The registry client against a real registry."""

import asyncio
import uuid
from typing import Any

import msgspec
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from things_kit import ConfigError, Topic, connect
from things_kit.codecs import JSON, Avro, Protobuf, Registry, Unprepared, registry
from things_kit.codecs.contract import contract_decoder
from things_kit.testing.servers.fixtures import own
from things_kit.testing.servers.registry import RegistryServer

server = own(RegistryServer)


class Order(msgspec.Struct):
    id: str
    total: int = 0


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


async def test_consumers_wait_for_a_registry_that_stands_still(
    server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "SLOW", 1.0)
    name = f"t-{uuid.uuid4().hex}"
    writer = Topic(name, Order, codec=Avro(registry=Registry(server.url)))
    reading = Registry(server.url)
    reader = Topic(name, Order, codec=Avro(registry=reading))
    seen: asyncio.Queue[Order] = asyncio.Queue()

    async def handle(order: Order) -> None:
        await seen.put(order)

    async with connect("memory://") as broker, broker.consumer(reader, group="g", handler=handle):
        await writer.prepare()
        reading._stored.clear()
        server.pause()
        try:
            await broker.producer().publish(writer, Order("a", 5))
            await asyncio.sleep(2.5)
            assert seen.empty()
        finally:
            server.resume()
        assert await seen.get() == Order("a", 5)
        assert await broker.lag(f"{name}-dlq", "dead-letters") == 0
