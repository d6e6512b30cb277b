"""Topics whose schemas are in a registry: one suite for the one in memory and the one over HTTP."""

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.codecs.given import Server, decode
from tests.engine.scenario import until, virtual
from things_kit import BrokerUnavailable, ConfigError, DecodeError, Message, Topic
from things_kit.codecs import JSON, Avro, MemoryRegistry, Protobuf, Registry, Unprepared
from things_kit.codecs import registry as over_http
from things_kit.codecs import schemas as client
from things_kit.testing.stub import BARE, StubDriver, broker_of


class Order(msgspec.Struct):
    id: str
    total: int = 0


class Created(msgspec.Struct):
    id: str


class Cancelled(msgspec.Struct):
    id: str


@pytest.mark.parametrize("kind", [Avro, JSON])
async def test_a_value_says_by_which_schema_it_was_written(schemas: Any, kind: Any) -> None:
    topic = Topic("orders", Order, codec=kind(registry=schemas))
    await topic.prepare()
    message = topic.message(Order("a", 5))
    assert message.value[:5] == b"\x00\x00\x00\x00\x01"
    assert message.headers["content-type"] == f"application/vnd.confluent.{kind.__name__.lower()}"
    assert decode(topic, Order, message) == Order("a", 5)
    assert decode(topic, dict, message) == {"id": "a", "total": 5}
    assert decode(topic, Order, Message("orders", message.value)) == Order("a", 5)


async def test_before_it_is_prepared_a_topic_makes_no_message() -> None:
    for codec in (Avro(registry=MemoryRegistry()), JSON(registry=MemoryRegistry())):
        with pytest.raises(ConfigError, match=r"await topic\.prepare\(\) first"):
            Topic("orders", Order, codec=codec).message(Order("a"))
    with pytest.raises(ConfigError, match=r"await topic\.prepare\(\) first"):
        Topic("t", Timestamp, codec=Protobuf(registry=MemoryRegistry())).message(Timestamp())


class Older(msgspec.Struct):
    id: str


async def test_readers_and_writers_schemas_are_resolved(schemas: Any) -> None:
    named = msgspec.defstruct("Order", [("id", str)])
    old: Topic[Any] = Topic("orders", named, codec=Avro(registry=schemas))
    new = Topic("orders", Order, codec=Avro(registry=schemas))
    await old.prepare()
    await new.prepare()
    assert decode(new, Order, old.message(named("a"))) == Order("a", 0)
    assert decode(old, named, new.message(Order("a", 5))) == named("a")
    assert decode(new, dict, old.message(named("a"))) == {"id": "a"}


async def test_a_schema_that_is_not_known_is_fetched_and_then_cached(schemas: Any) -> None:
    writer = Topic("orders", Order, codec=Avro(registry=schemas))
    await writer.prepare()
    message = writer.message(Order("a"))
    schemas._stored.clear()
    for _ in range(2):
        with pytest.raises(Unprepared) as raised:
            decode(writer, Order, message)
    await raised.value.awaitable
    assert decode(writer, Order, message) == Order("a")


async def test_subjects_are_named_as_asked() -> None:
    kinds: dict[str, type[Created | Cancelled]] = {"c": Created, "x": Cancelled}
    for naming, expected in (
        (None, {"orders-value"}),
        ("record", {"shop.Order"}),
        ("topic-record", {"orders-shop.Order"}),
    ):
        memory = MemoryRegistry()
        codec = Avro(namespace="shop", registry=memory, subject=naming)  # type: ignore[arg-type] # is one of them
        await Topic("orders", Order, codec=codec).prepare()
        assert set(memory.subjects) == expected
    memory = MemoryRegistry()
    shop = Topic[Created | Cancelled]("shop", kinds, by="type", codec=JSON(registry=memory))
    await shop.prepare()
    assert set(memory.subjects) == {"shop-Created", "shop-Cancelled"}
    assert decode(shop, Created | Cancelled, shop.message(Cancelled("a"))) == Cancelled("a")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Avro(registry="http://x"),  # type: ignore[arg-type] # tested
        lambda: JSON(subject="topic"),
        lambda: Avro(registry=MemoryRegistry(), subject="other"),  # type: ignore[arg-type] # tested
        lambda: Topic("t", Order, version=1, codec=JSON(registry=MemoryRegistry())),
        lambda: Topic("t", Order, version=1, codec=Avro(registry=MemoryRegistry())),
        lambda: Topic("t", {"o": Order}, by="type", codec=Protobuf(registry=MemoryRegistry())),
        lambda: Topic(
            "t", {"t": Timestamp}, by="type", codec=Protobuf(registry=MemoryRegistry(), subject="topic")
        ),
        lambda: Registry("localhost"),
        lambda: Registry([]),
        lambda: Registry("http://x", username="a", token="b"),
        lambda: Registry("https://x", key="a"),
    ],
)
def test_what_cannot_be_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


async def test_protobuf_has_the_index_of_its_message(schemas: Any) -> None:
    topic = Topic("times", Timestamp, codec=Protobuf(registry=schemas))
    await topic.prepare()
    message = topic.message(Timestamp(seconds=5))
    assert message.value == b"\x00\x00\x00\x00\x01\x00" + Timestamp(seconds=5).SerializeToString()
    assert decode(topic, Timestamp, message) == Timestamp(seconds=5)
    several = Topic[Timestamp | Duration](
        "t", {"t": Timestamp, "d": Duration}, by="type", codec=Protobuf(registry=schemas)
    )
    await several.prepare()
    assert decode(several, Timestamp | Duration, several.message(Duration(seconds=1))) == Duration(seconds=1)


@pytest.mark.parametrize(
    "value", [b"", b"\x00\x00", b"\x01\x00\x00\x00\x01x", b"{}", b"\x00\x00\x00\x00\x01"]
)
@pytest.mark.parametrize("kind", ["avro", "json", "protobuf"])
async def test_wrong_and_truncated_values_are_a_decode_error(kind: str, value: bytes) -> None:
    memory = MemoryRegistry()
    topics: dict[str, Topic[Any]] = {
        "avro": Topic("t", Order, codec=Avro(registry=memory)),
        "json": Topic("t", Order, codec=JSON(registry=memory)),
        "protobuf": Topic("t", Timestamp, codec=Protobuf(registry=memory)),
    }
    await topics[kind].prepare()
    with pytest.raises(DecodeError, match=r": .*\w"):
        decode(topics[kind], Timestamp if kind == "protobuf" else Order, Message("t", value))


async def test_a_reason_is_a_sentence_however_large_the_schema() -> None:
    memory = MemoryRegistry()
    topic = Topic("t", Order, codec=Avro(registry=memory))
    await topic.prepare()
    message = topic.message(Order("a"))
    symbols = [f"S{number}" for number in range(50_000)]
    memory._stored[1] = client.Stored(json.dumps({"type": "enum", "name": "E", "symbols": symbols}), "AVRO")
    with pytest.raises(DecodeError) as raised:
        decode(topic, Order, message)
    assert len(str(raised.value)) < 1000


async def test_a_stored_schema_that_is_none_is_a_decode_error() -> None:
    memory = MemoryRegistry()
    topic = Topic("t", Order, codec=Avro(registry=memory))
    await topic.prepare()
    message = topic.message(Order("a"))
    for stored in (
        client.Stored("{", "AVRO"),
        client.Stored('"int"', "JSON"),
        client.Stored("[" * 100_000, "AVRO"),
    ):
        memory._stored[1] = stored
        with pytest.raises(DecodeError):
            decode(topic, Order, message)


# --- over HTTP


async def test_a_schema_is_looked_up_before_it_is_registered_and_asked_for_once(server: Server) -> None:
    topic = Topic("orders", Order, codec=Avro(registry=Registry(server.url)))
    await topic.prepare()
    assert server.calls == ["POST /subjects/orders-value", "POST /subjects/orders-value/versions"]
    await topic.prepare()
    assert len(server.calls) == 2
    other = Registry(server.url, register=False)
    await Topic("orders", Order, codec=Avro(registry=other)).prepare()
    assert server.calls[2:] == ["POST /subjects/orders-value"]


async def test_without_the_right_to_register_what_is_missing_is_a_config_error(server: Server) -> None:
    topic = Topic("orders", Order, codec=Avro(registry=Registry(server.url, register=False)))
    with pytest.raises(ConfigError, match="does not have the schema of 'orders-value', and register=False"):
        await topic.prepare()


async def test_compatibility_is_set_on_what_was_created_alone(server: Server) -> None:
    for kind in (Order, Created):
        topic: Topic[Any] = Topic(
            "orders", kind, codec=Avro(registry=Registry(server.url, compatibility="FULL"))
        )
        await topic.prepare()
    assert server.memory.levels == {"orders-value": "FULL"}
    assert server.calls.count("PUT /config/orders-value") == 1


async def test_logins_are_sent_and_never_shown(server: Server) -> None:
    await Topic(
        "t", Order, codec=Avro(registry=Registry(server.url, username="me", password="hidden"))
    ).prepare()
    assert server.seen[0]["Authorization"].startswith("Basic ")
    await Topic("u", Order, codec=Avro(registry=Registry(server.url, token="hidden"))).prepare()
    assert server.seen[-1]["Authorization"] == "Bearer hidden"
    assert "hidden" not in repr(Registry("http://me:hidden@localhost"))
    server.answers = [(401, b"{}")]
    with pytest.raises(ConfigError, match=r"does not let us in \(401\)") as raised:
        await Topic("v", Order, codec=Avro(registry=Registry(server.url, token="hidden"))).prepare()
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((403, b"{}"), "does not let us in"),
        ((200, b"<html>"), "what is no JSON"),
        ((200, b"[]"), "answered without"),
        ((200, b'{"id": "x"}'), "answered without"),
        ((200, b'{"id": -1}'), "the id -1, which can be none"),
        ((200, b'{"id": 4294967296}'), "the id 4294967296, which can be none"),
        ((422, b'{"message": "Invalid schema"}'), "422 Invalid schema"),
        ((200, b"[" * 100_000), "what is no JSON"),
        ((200, b" " * (5 << 20)), "more than"),
    ],
)
async def test_what_waiting_cannot_mend_is_a_config_error_at_once(
    server: Server, answer: tuple[int, bytes], why: str
) -> None:
    server.answers = [answer]
    with pytest.raises(ConfigError, match=why):
        await Topic("t", Order, codec=Avro(registry=Registry(server.url))).prepare()


async def test_an_incompatible_schema_is_a_config_error(server: Server) -> None:
    server.answers = [(404, b'{"error_code": 40403}'), (409, b'{"message": "incompatible"}')]
    with pytest.raises(ConfigError, match="refused the schema of 't-value': 409 incompatible"):
        await Topic("t", Order, codec=Avro(registry=Registry(server.url))).prepare()


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_outage_is_waited_out(server: Server, status: int) -> None:
    server.answers = [(status, b""), (status, b"<html>")]
    await Topic("t", Order, codec=Avro(registry=Registry(server.url))).prepare()
    assert len(server.calls) == 4


async def test_a_registry_that_stays_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE", 0.3)
    topic = Topic("t", Order, codec=Avro(registry=Registry("http://127.0.0.1:9")))
    with pytest.raises(
        BrokerUnavailable, match=r"was away for 0\.3 s: http://127\.0\.0\.1:9 cannot be reached"
    ):
        await topic.prepare()


async def test_a_registry_that_hangs_is_said_to_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE", 0.3)
    monkeypatch.setattr(over_http, "SLOW", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        with pytest.raises(BrokerUnavailable, match=r"did not answer within 0\.1 s"):
            await Topic("t", Order, codec=Avro(registry=Registry(url))).prepare()


async def test_of_several_addresses_one_that_answers_is_enough(server: Server) -> None:
    await Topic("t", Order, codec=Avro(registry=Registry(["http://127.0.0.1:9", server.url]))).prepare()


async def test_an_id_that_has_another_schema_is_refused(server: Server) -> None:
    made = Registry(server.url)
    await Topic("t", Order, codec=Avro(registry=made)).prepare()
    server.answers = [(200, b'{"id": 1, "version": 1}')]
    with pytest.raises(ConfigError, match="gave 'u-value' the id 1, which has another schema"):
        await Topic("u", Created, codec=Avro(registry=made)).prepare()


@virtual
async def test_an_unknown_id_is_asked_for_again_and_then_is_a_decode_error() -> None:
    asked: list[float] = []

    class Asked(MemoryRegistry):
        async def ask(self, *arguments: Any) -> client.Answer:
            asked.append(asyncio.get_running_loop().time())
            return await super().ask(*arguments)

    made = Asked()
    with pytest.raises(DecodeError, match="has no schema 7"):
        await made.fetch(7)
    assert len(asked) > 5
    assert client.PATIENCE / 2 < asked[-1] <= client.PATIENCE
    known = len(asked)
    with pytest.raises(DecodeError):
        await made.fetch(7)
    assert len(asked) == known


# --- TLS


def certificate(folder: Path, name: str) -> tuple[str, str]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    cert, key = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", cert, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@contextlib.contextmanager
def with_tls(own: tuple[str, str], of_clients: str, newest: ssl.TLSVersion) -> Iterator[Server]:
    """A server for clients with this certificate alone."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=of_clients)
    context.load_cert_chain(*own)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = newest
    made = Server(context)
    try:
        yield made
    finally:
        made.close()


async def test_both_sides_show_a_certificate(tmp_path: Path) -> None:
    theirs, ours, nobodys = (certificate(tmp_path, name) for name in ("theirs", "ours", "nobodys"))
    with with_tls(theirs, ours[0], ssl.TLSVersion.TLSv1_3) as server:
        trusting = Registry(server.url, ca=theirs[0], cert=ours[0], key=ours[1])
        await Topic("t", Order, codec=Avro(registry=trusting)).prepare()
        assert "t-value" in server.memory.subjects
    # With TLS 1.3 a client may see the connection end before it reads why
    with with_tls(theirs, ours[0], ssl.TLSVersion.TLSv1_2) as server:
        for files, why in (
            ((theirs[0], None, None), "it does not accept our certificate"),
            ((theirs[0], *nobodys), "it does not accept our certificate"),
            ((ours[0], *ours), "its certificate is not trusted"),
            ((None, *ours), "its certificate is not trusted"),
            ((theirs[0], ours[0], nobodys[1]), "the certificates of .* cannot be read"),
            ((str(tmp_path / "none"), None, None), "the certificates of .* cannot be read"),
        ):
            ca, cert, key = files
            refused = Registry(server.url, ca=ca, cert=cert, key=key)
            with pytest.raises(ConfigError, match=why):
                await Topic("t", Order, codec=Avro(registry=refused)).prepare()


# --- in the engine


class Flaky(MemoryRegistry):
    """Away while `away` is set."""

    away = False

    async def ask(self, *arguments: Any) -> Any:
        if self.away:
            raise client.Away("it is away")
        return await super().ask(*arguments)


@virtual
async def test_consumers_wait_for_a_registry_that_is_away_and_nothing_is_dead_lettered() -> None:
    flaky, driver, seen = Flaky(), StubDriver(BARE), list[Any]()
    writer = Topic("orders", Order, codec=Avro(registry=flaky))
    await writer.prepare()
    reader = Topic("orders", Order, codec=Avro(registry=flaky))

    async def handle(order: Order, message: Message) -> None:
        seen.append((order, message.attempt))

    async with broker_of(driver) as broker, broker.consumer(reader, group="g", handler=handle):
        flaky._stored.clear()
        flaky.away = True
        driver.put(*(writer.message(Order(str(n)), id=str(n)) for n in range(3)))
        await asyncio.sleep(300)
        assert not driver.acknowledged
        flaky.away = False
        await until(lambda: len(driver.acknowledged) == 3)
    assert sorted(seen, key=str) == [(Order(str(n)), 1) for n in range(3)]
    assert not driver.topics.get("orders-dlq")
    flaky.away = True
    async with broker_of(driver) as broker:
        producer = broker.producer()
        with pytest.raises(BrokerUnavailable):
            await producer.publish(Topic("new", Order, codec=JSON(registry=flaky)), Order("a"))


# --- confluent-kafka's own serializers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_confluent_s_serializers_write_the_same_bytes(server: Server) -> None:
    pytest.importorskip("authlib", reason="confluent-kafka's extra schemaregistry is not installed")
    confluent = pytest.importorskip("confluent_kafka.schema_registry")
    naming = {"subject.name.strategy": confluent.topic_subject_name_strategy}
    theirs_avro = pytest.importorskip("confluent_kafka.schema_registry.avro")
    theirs_protobuf = pytest.importorskip("confluent_kafka.schema_registry.protobuf")
    from confluent_kafka.serialization import MessageField, SerializationContext  # noqa: PLC0415 - as above

    made, client = Registry(server.url), confluent.SchemaRegistryClient({"url": server.url})
    orders = Topic("orders", Order, codec=Avro(registry=made))
    times = Topic("times", Timestamp, codec=Protobuf(registry=made))
    await orders.prepare()
    await times.prepare()
    context = SerializationContext("orders", MessageField.VALUE)
    codec: Any = orders.codec
    schema = codec.subjects(orders)[None].schema

    def plain(order: Order, _: Any) -> Any:
        return msgspec.to_builtins(order)

    write = theirs_avro.AvroSerializer(client, schema, plain, {"auto.register.schemas": False, **naming})
    ours = orders.message(Order("a", 5)).value
    assert await asyncio.to_thread(write, Order("a", 5), context) == ours
    read = theirs_avro.AvroDeserializer(client, schema, conf=naming)
    assert await asyncio.to_thread(read, ours, context) == {"id": "a", "total": 5}

    context = SerializationContext("times", MessageField.VALUE)
    proto = theirs_protobuf.ProtobufSerializer(Timestamp, client, {"use.deprecated.format": False, **naming})
    ours = times.message(Timestamp(seconds=5)).value
    assert await asyncio.to_thread(proto, Timestamp(seconds=5), context) == ours
