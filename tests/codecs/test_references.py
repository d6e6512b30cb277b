"""Schemas that refer to others: one suite for the registry in memory and the one over HTTP."""

import asyncio
import enum
import json
from dataclasses import dataclass
from typing import Any

import msgspec
import pydantic
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.codecs.given import Server, decode
from things_kit import ConfigError, DecodeError, Message, Topic
from things_kit.codecs import JSON, Avro, MemoryRegistry, Protobuf, Registry, Unprepared
from things_kit.codecs import schemas as client
from things_kit.codecs.framed import framed

COUNTRY = {"type": "enum", "name": "Country", "namespace": "geo", "symbols": ["AT", "CH"]}
ADDRESS = {"type": "record", "name": "Address", "namespace": "shop", "fields": [
    {"name": "street", "type": "string"}, {"name": "country", "type": "geo.Country"},
]}  # fmt: skip
ORDER = {"type": "record", "name": "Order", "namespace": "shop", "fields": [
    {"name": "id", "type": "string"}, {"name": "to", "type": "Address"},
]}  # fmt: skip
GIVEN = {"shop.Address": ADDRESS, "countries": json.dumps(COUNTRY)}


class Country(enum.Enum):
    AT = "AT"
    CH = "CH"


class Address(msgspec.Struct):
    street: str
    country: Country


class Order(msgspec.Struct):
    id: str
    to: Address


class Moved(msgspec.Struct, tag=True):
    to: Address


class Stayed(msgspec.Struct, tag=True):
    at: Address | None = None


HOME = Address("Main Street", Country.AT)


async def read_by_a_stranger(schemas: Any, topic: Topic[Any], message: Message) -> Any:
    """As by a consumer that knows none of the schemas yet."""
    schemas._stored.clear()
    schemas._imported.clear()
    with pytest.raises(Unprepared) as raised:
        decode(topic, dict, message)
    await raised.value.awaitable
    return decode(topic, dict, message)


async def test_what_a_schema_refers_to_is_registered_first_in_whatever_order_it_is_given(
    schemas: Any,
) -> None:
    topic = Topic("orders", Order, codec=Avro(ORDER, references=GIVEN, registry=schemas))
    await topic.prepare()
    registered = await schemas.latest("orders-value")
    assert registered["references"] == [{"name": "shop.Address", "subject": "shop.Address", "version": 1}]
    address = await schemas.latest("shop.Address")
    assert address["references"] == [{"name": "geo.Country", "subject": "countries", "version": 1}]
    message = topic.message(Order("o-1", HOME))
    assert decode(topic, Order, message) == Order("o-1", HOME)
    plain = {"id": "o-1", "to": {"street": "Main Street", "country": "AT"}}
    assert await read_by_a_stranger(schemas, topic, message) == plain


async def test_types_that_are_registered_by_themselves_have_their_names_alone(schemas: Any) -> None:
    references = {"address-value": Address, "countries": Country}
    topic = Topic("orders", Order, codec=Avro(namespace="shop", references=references, registry=schemas))
    await topic.prepare()
    registered = await schemas.latest("orders-value")
    assert json.loads(registered["schema"])["fields"][1] == {"name": "to", "type": "shop.Address"}
    assert registered["references"] == [{"name": "shop.Address", "subject": "address-value", "version": 1}]
    message = topic.message(Order("o-1", HOME))
    assert decode(topic, Order, message) == Order("o-1", HOME)
    assert (await read_by_a_stranger(schemas, topic, message))["to"]["country"] == "AT"


async def test_a_union_may_be_of_types_that_are_all_elsewhere(schemas: Any) -> None:
    references = {"moved": Moved, "stayed": Stayed, "address": Address}
    make: Any = Topic
    topic: Topic[Any] = make("moves", Moved | Stayed, codec=Avro(references=references, registry=schemas))
    await topic.prepare()
    registered = await schemas.latest("moves-value")
    assert json.loads(registered["schema"]) == ["Moved", "Stayed"]
    for payload in (Moved(HOME), Stayed(HOME), Stayed()):
        message = topic.message(payload)
        assert decode(topic, Moved | Stayed, message) == payload
        assert await read_by_a_stranger(schemas, topic, message) == msgspec.to_builtins(payload)


@pytest.mark.parametrize("codec", [Avro(ORDER, references=GIVEN), Avro(references={"a": Address})])
def test_references_need_no_registry(codec: Avro) -> None:
    topic = Topic("orders", Order, codec=codec)
    assert decode(topic, Order, topic.message(Order("o-1", HOME))) == Order("o-1", HOME)


async def test_what_is_inside_a_reference_is_that_reference_s(schemas: Any) -> None:
    inside = msgspec.defstruct("Inside", [("country", Country)])
    whole = {**ADDRESS, "fields": [ADDRESS["fields"][0], {"name": "country", "type": COUNTRY}]}
    schema = {"type": "record", "name": "Inside", "fields": [{"name": "country", "type": "geo.Country"}]}
    codec = Avro(schema, references={"a": whole, "unused": {**COUNTRY, "name": "Other"}}, registry=schemas)
    await Topic("t", inside, codec=codec).prepare()
    registered = await schemas.latest("t-value")
    assert registered["references"] == [{"name": "shop.Address", "subject": "a", "version": 1}]
    assert await schemas.latest("unused") is None


async def test_a_reference_says_the_version_that_it_means(schemas: Any) -> None:
    older = msgspec.defstruct("Address", [("street", str)])
    order = msgspec.defstruct("Order", [("to", older)])
    await Topic("orders", order, codec=Avro(references={"a": older}, registry=schemas)).prepare()
    await Topic("orders", Order, codec=Avro(references={"a": Address}, registry=schemas)).prepare()
    assert (await schemas.latest("orders-value"))["references"][0]["version"] == 2


@pytest.mark.parametrize(
    ("references", "why"),
    [
        ({"a": ADDRESS}, "the reference 'a': it is no Avro schema: geo.Country"),
        ({"a": {"type": "array", "items": "string"}}, "the reference 'a': it is no named type"),
        ({"a": "{"}, "the reference 'a': "),
        ({"a": 5}, "."),
        ({}, "shop.Address"),
    ],
)
def test_references_that_lead_nowhere_are_refused_when_the_topic_is_made(references: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Topic("orders", Order, codec=Avro(ORDER, references=references))


async def test_what_refers_to_nothing_is_asked_for_again_and_then_is_a_decode_error(
    schemas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE", 0.3)
    topic = Topic("orders", Order, codec=Avro(ORDER, references=GIVEN, registry=schemas))
    await topic.prepare()
    message = topic.message(Order("o-1", HOME))
    answers = schemas.ask

    async def ask(method: str, path: str, body: Any = None) -> Any:
        if path == "subjects/countries/versions/1":
            return client.Answer(404, {"error_code": 40402})
        return await answers(method, path, body)

    monkeypatch.setattr(schemas, "ask", ask)
    with pytest.raises(DecodeError, match="has no schema 3"):
        await read_by_a_stranger(schemas, topic, message)
    monkeypatch.setattr(schemas, "ask", answers)
    schemas._unknown.clear()
    assert (await read_by_a_stranger(schemas, topic, message))["id"] == "o-1"


class Endless(MemoryRegistry):
    """Each of its schemas refers to the next."""

    length = 10**9

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        number = int(path.rpartition("/")[2])
        name = f"n{number}"
        references = [{"name": name, "subject": "s", "version": number + 1}] if number < self.length else []
        schema = {"type": "record", "name": name, "fields": []}
        return client.Answer(200, {"schema": json.dumps(schema), "references": references})


async def test_a_registry_whose_schemas_have_no_end_is_refused_and_one_that_goes_in_circles_is_not() -> None:
    with pytest.raises(DecodeError, match="needs more than 200 others"):
        await Endless().fetch(1)
    circle = MemoryRegistry()
    circle.schemas = [{"schema": '"int"', "references": [{"name": "a", "subject": "a", "version": 1}]}]
    circle.subjects = {"a": [1]}
    await circle.fetch(1)


# --- JSON


class Street(pydantic.BaseModel):
    name: str
    country: Country


class Town(pydantic.BaseModel):
    main: Street
    others: list[Street] = []


@dataclass
class Trip:
    towns: list[Town]
    last: Street | None = None


async def test_types_inside_json_that_are_registered_by_themselves_are_referred_to(schemas: Any) -> None:
    references = {"addresses": Address, "countries": Country}
    topic = Topic("orders", Order, codec=JSON(references=references, registry=schemas))
    await topic.prepare()
    registered = await schemas.latest("orders-value")
    assert registered["schemaType"] == "JSON"
    assert registered["references"] == [{"name": "Address.json", "subject": "addresses", "version": 1}]
    schema = json.loads(registered["schema"])
    assert schema["properties"]["to"] == {"$ref": "Address.json"}
    assert "definitions" not in schema
    address = await schemas.latest("addresses")
    assert address["references"] == [{"name": "Country.json", "subject": "countries", "version": 1}]
    message = topic.message(Order("o-1", HOME))
    assert decode(topic, Order, message) == Order("o-1", HOME)
    await schemas.fetch(int.from_bytes(message.value[1:5], "big"))


async def test_models_may_be_referred_to_and_leave_nothing_of_theirs_behind(schemas: Any) -> None:
    references = {"streets": Street, "towns": Town}
    topic = Topic("trips", Trip, codec=JSON(references=references, registry=schemas))
    await topic.prepare()
    registered = await schemas.latest("trips-value")
    assert [each["name"] for each in registered["references"]] == ["Street.json", "Town.json"]
    assert "definitions" not in json.loads(registered["schema"])
    town = await schemas.latest("towns")
    assert json.loads(town["schema"])["properties"]["main"] == {"$ref": "Street.json"}
    street = json.loads((await schemas.latest("streets"))["schema"])
    assert street["definitions"].keys() == {"Country"}
    payload = Trip([Town(main=Street(name="s", country=Country.CH))])
    assert decode(topic, Trip, topic.message(payload)) == payload


async def test_what_a_topic_carries_itself_may_be_among_its_references(schemas: Any) -> None:
    codec = JSON(references={"towns": Town, "streets": Street}, registry=schemas)
    await Topic("towns", Town, codec=codec).prepare()
    assert (await schemas.latest("towns-value"))["references"][0]["name"] == "Street.json"


class Left(msgspec.Struct):
    right: "Right | None" = None


class Right(msgspec.Struct):
    left: Left | None = None


class Hen(msgspec.Struct):
    right: Right


@pytest.mark.parametrize(
    ("references", "why"),
    [
        ({"a": list[Address]}, "the reference 'a': it is no named type"),
        ({"a": Address, "b": Address}, "the reference 'b': another one has the name 'Address'"),
        ({"a": Left, "b": Right}, "schemas that refer to one another: Right.json and Left.json"),
        ({"a": object()}, "."),
        ({"a": "{}"}, "."),
    ],
    ids=["no named type", "one name twice", "in a circle", "no type", "text"],
)
def test_references_of_json_that_cannot_be_are_refused_when_the_topic_is_made(
    references: Any, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        Topic("t", Hen, codec=JSON(references=references, registry=MemoryRegistry()))
    with pytest.raises(ConfigError, match="needs registry="):
        JSON(references=references)


# --- Protobuf


def generated(*files: tuple[str, str, dict[str, str]]) -> dict[str, Any]:
    """Classes as protoc makes them: a file's path, its message, and the types of its fields by their names."""
    pool = descriptor_pool.DescriptorPool()
    homes: dict[str, str] = {}
    for path, name, fields in files:
        file = descriptor_pb2.FileDescriptorProto(name=path, package="shop", syntax="proto3")
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            made = message.field.add(name=field, number=number, label=1)
            made.type = 11 if kind in homes else 9
            if kind in homes:
                made.type_name = f".shop.{kind}"
                if homes[kind] not in file.dependency:
                    file.dependency.append(homes[kind])
        homes[name] = path
        pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.{name}")) for name in homes
    }


FILES = (
    ("country.proto", "Country", {"code": "string"}),
    ("address.proto", "Address", {"street": "string", "country": "Country"}),
    ("order.proto", "Order", {"to": "Address", "from": "Country"}),
)


async def test_files_that_a_protobuf_file_imports_are_registered_first(schemas: Any) -> None:
    kind = generated(*FILES)["Order"]
    topic = Topic("orders", kind, codec=Protobuf(registry=schemas))
    await topic.prepare()
    registered = await schemas.latest("orders-value")
    assert [each["name"] for each in registered["references"]] == ["address.proto", "country.proto"]
    assert (await schemas.latest("address.proto"))["references"] == [
        {"name": "country.proto", "subject": "country.proto", "version": 1}
    ]
    payload = kind(to={"street": "Main Street"})
    assert decode(topic, kind, topic.message(payload)) == payload


# --- confluent-kafka's own serializers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_confluent_s_serializers_write_and_read_the_same_bytes() -> None:
    pytest.importorskip("authlib", reason="confluent-kafka's extra schemaregistry is not installed")
    confluent = pytest.importorskip("confluent_kafka.schema_registry")
    theirs_avro = pytest.importorskip("confluent_kafka.schema_registry.avro")
    theirs_json = pytest.importorskip("confluent_kafka.schema_registry.json_schema")
    theirs_protobuf = pytest.importorskip("confluent_kafka.schema_registry.protobuf")
    from confluent_kafka.serialization import MessageField, SerializationContext  # noqa: PLC0415 - as above

    server = Server()
    naming = {"subject.name.strategy": confluent.topic_subject_name_strategy}
    try:
        made, theirs = Registry(server.url), confluent.SchemaRegistryClient({"url": server.url})
        orders = Topic("orders", Order, codec=Avro(ORDER, references=GIVEN, registry=made))
        await orders.prepare()
        ours = orders.message(Order("o-1", HOME)).value
        references = [confluent.SchemaReference("shop.Address", "shop.Address", 1)]
        schema = confluent.Schema(json.dumps(ORDER), "AVRO", references)
        context = SerializationContext("orders", MessageField.VALUE)
        write = theirs_avro.AvroSerializer(
            theirs,
            schema,
            lambda order, _: msgspec.to_builtins(order),
            {"auto.register.schemas": False, **naming},
        )
        assert await asyncio.to_thread(write, Order("o-1", HOME), context) == ours
        read = theirs_avro.AvroDeserializer(theirs, conf=naming)
        assert await asyncio.to_thread(read, ours, context) == msgspec.to_builtins(Order("o-1", HOME))

        parcels = Topic("parcels", Order, codec=JSON(references={"a": Address, "c": Country}, registry=made))
        await parcels.prepare()
        context = SerializationContext("parcels", MessageField.VALUE)
        known = await asyncio.to_thread(theirs.get_latest_version, "parcels-value")
        ours = parcels.message(Order("o-1", HOME)).value
        read = theirs_json.JSONDeserializer(known.schema, schema_registry_client=theirs, conf=naming)
        assert await asyncio.to_thread(read, ours, context) == msgspec.to_builtins(Order("o-1", HOME))
        write = theirs_json.JSONSerializer(
            known.schema,
            theirs,
            lambda order, _: msgspec.to_builtins(order),
            {"auto.register.schemas": False, **naming},
        )
        written = await asyncio.to_thread(write, Order("o-1", HOME), context)
        assert written[:5] == ours[:5]
        assert decode(parcels, Order, Message("parcels", written)) == Order("o-1", HOME)

        kind = generated(*FILES)["Order"]
        context = SerializationContext("times", MessageField.VALUE)
        proto = theirs_protobuf.ProtobufSerializer(kind, theirs, {"use.deprecated.format": False, **naming})
        payload = kind(to={"street": "Main Street"})
        written = await asyncio.to_thread(proto, payload, context)
        topic = Topic("times", kind, codec=Protobuf(registry=made))
        await topic.prepare()
        assert topic.message(payload).value == written
    finally:
        server.close()


async def test_a_value_of_another_s_schema_with_references_is_read(schemas: Any) -> None:
    """As the schemas would be registered by whatever client."""
    for name, schema, references in (
        ("countries", COUNTRY, []),
        ("a", ADDRESS, [{"name": "geo.Country", "subject": "countries", "version": 1}]),
        ("theirs", ["null", "shop.Address"], [{"name": "shop.Address", "subject": "a", "version": 1}]),
    ):
        body = {"schema": json.dumps(schema), "references": references}
        answer = await schemas.ask("POST", f"subjects/{name}/versions", body)
        assert answer.status == 200
    topic = Topic("t", Address, codec=Avro(registry=schemas))
    value = framed(answer.body["id"]) + b"\x02\x02S\x00"
    message = Message("t", value, headers={"content-type": topic.content_type})
    assert await read_by_a_stranger(schemas, topic, message) == {"street": "S", "country": "AT"}
