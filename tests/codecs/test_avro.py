"""Avro: schemas of types, values that fastavro reads, and what is refused."""

import enum
import io
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Generic, Literal, TypedDict, TypeVar

import fastavro
import msgspec
import pydantic
import pytest

from things_kit import ConfigError, DecodeError, Message, Topic
from things_kit.codecs import Avro
from things_kit.codecs.avro_parsed import parsed_schema
from things_kit.codecs.avro_schema import avro_schema
from things_kit.codecs.contract import contract_decoder
from things_kit.codecs.payload import payload_decoder

ItemT = TypeVar("ItemT")


class Status(enum.Enum):
    NEW = "new"
    DONE = "done"


class Line(msgspec.Struct):
    """A line of an order."""

    sku: str
    count: int = 1


class Order(msgspec.Struct, rename="camel"):
    order_id: str
    lines: list[Line] = []
    status: Status = Status.NEW
    note: str | None = None
    placed_at: datetime | None = None


class Page(msgspec.Struct, Generic[ItemT]):
    items: list[ItemT]


class Tree(msgspec.Struct):
    value: int
    children: "list[Tree]" = []


class Created(msgspec.Struct, tag=True):
    id: str


class Cancelled(msgspec.Struct, tag=True):
    id: str


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    name: str


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Zoo(pydantic.BaseModel):
    animals: list[Cat | Dog]
    by_name: dict[str, Cat] = {}
    owner: str | None = pydantic.Field(default=None, alias="ownerName")


@dataclass
class Data:
    tags: set[str]
    price: Decimal


class Typed(TypedDict):
    id: str


class Partly(TypedDict, total=False):
    id: str


def decode(topic: Topic[Any], wanted: Any, message: Message) -> Any:
    return contract_decoder(topic, wanted, "the handler h")(message)


def test_the_schema_is_the_type_s() -> None:
    assert avro_schema(Order, "shop") == {
        "type": "record",
        "name": "Order",
        "namespace": "shop",
        "fields": [
            {"name": "orderId", "type": "string"},
            {
                "name": "lines",
                "type": {
                    "type": "array",
                    "items": {
                        "type": "record",
                        "name": "Line",
                        "namespace": "shop",
                        "doc": "A line of an order.",
                        "fields": [
                            {"name": "sku", "type": "string"},
                            {"name": "count", "type": "long", "default": 1},
                        ],
                    },
                },
                "default": [],
            },
            {
                "name": "status",
                "type": {"type": "enum", "name": "Status", "symbols": ["new", "done"], "namespace": "shop"},
                "default": "new",
            },
            {"name": "note", "type": ["null", "string"], "default": None},
            {
                "name": "placedAt",
                "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}],
                "default": None,
            },
        ],
    }


def test_generics_have_the_names_of_their_arguments_and_recursion_is_by_name() -> None:
    page: Any = avro_schema(Page[Line])
    assert page["name"] == "Page_Line"
    tree: Any = avro_schema(Tree, "n")
    assert tree["fields"][1]["type"] == {"type": "array", "items": "n.Tree"}


def test_what_is_written_is_what_fastavro_reads() -> None:
    topic = Topic("orders", Order, codec=Avro())
    order = Order("o-1", [Line("s", 2)], Status.DONE, "n", datetime(2026, 1, 2, tzinfo=UTC))
    message = topic.message(order)
    assert message.headers == {"content-type": "application/avro"}
    schema = fastavro.parse_schema(avro_schema(Order))
    read: Any = fastavro.schemaless_reader(io.BytesIO(message.value), schema, None)
    assert read["orderId"] == "o-1"
    assert read["placedAt"] == datetime(2026, 1, 2, tzinfo=UTC)
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, read)
    assert decode(topic, Order, Message("orders", stream.getvalue())) == order
    assert decode(topic, dict, message)["lines"] == [{"sku": "s", "count": 2}]


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Page[Line], Page([Line("a")])),
        (Tree, Tree(1, [Tree(2), Tree(3, [Tree(4)])])),
        (Created | Cancelled, Cancelled("x")),
        (list[Created | Cancelled], [Created("x"), Cancelled("y")]),
        pytest.param(Data, Data({"a", "b"}, Decimal("1.50")), id="Data"),
        (Typed, {"id": "x"}),
        (Zoo, Zoo(animals=[Cat(name="c"), Dog(name="d")], by_name={"c": Cat(name="c")}, ownerName="o")),
        (list[Cat], [Cat(name="c")]),
        (dict[str, list[Line | None]], {"a": [None, Line("s")]}),
        (tuple[int, str], (1, "x")),
        (int, 5),
    ],
    ids=str,
)
def test_what_a_topic_takes_comes_back_equal(kind: Any, payload: Any) -> None:
    topic: Topic[Any] = Topic("t", kind, codec=Avro())
    back = decode(topic, kind, topic.message(payload))
    assert back == payload
    assert type(back) is type(payload)


def test_several_types_are_told_by_the_header() -> None:
    topic = Topic[Created | Line]("t", {"created": Created, "line": Line}, by="type", codec=Avro())
    for payload in (Created("x"), Line("s", 2)):
        message = topic.message(payload)
        assert decode(topic, Created | Line, message) == payload
    assert decode(topic, dict, topic.message(Line("s", 2))) == {"sku": "s", "count": 2}


def test_a_schema_may_be_given() -> None:
    schema = {
        "type": "record",
        "name": "L",
        "fields": [{"name": "sku", "type": "string"}, {"name": "count", "type": "int"}],
    }
    for given in (schema, msgspec.json.encode(schema).decode()):
        topic = Topic("t", Line, codec=Avro(given))
        assert decode(topic, Line, topic.message(Line("s", 2))) == Line("s", 2)
    several = Topic[Created | Line](
        "t",
        {"created": Created, "line": Line},
        by="type",
        codec=Avro({"created": avro_schema(Created), "line": schema}),
    )
    assert decode(several, Created | Line, several.message(Line("s", 2))) == Line("s", 2)


def test_decimals_of_a_given_schema_stay_decimals() -> None:
    price = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    schema = {"type": "record", "name": "D", "fields": [
        {"name": "tags", "type": {"type": "array", "items": "string"}}, {"name": "price", "type": price},
    ]}  # fmt: skip
    topic = Topic("t", Data, codec=Avro(schema))
    assert decode(topic, Data, topic.message(Data({"a"}, Decimal("1.50")))) == Data({"a"}, Decimal("1.50"))


def test_a_plain_name_is_decoded_by_the_content_type() -> None:
    sent = Topic("t", Line, codec=Avro()).message(Line("s", 2))
    assert payload_decoder(Line)(sent) == Line("s", 2)
    with pytest.raises(DecodeError):
        payload_decoder(dict)(sent)


class A(msgspec.Struct):
    id: str


class B(msgspec.Struct):
    id: str


class Strange(msgspec.Struct, rename={"id": "an id"}):
    id: str


class Arrays(msgspec.Struct, array_like=True):
    id: str


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Any, "Avro has nothing for Any"),
        (Partly, "'id' of Partly may be missing"),
        (Strange, "the field 'an id' of Strange is no name in Avro"),
        (Arrays, "Arrays is array_like"),
        (dict[tuple[int, int], str], "the keys of an Avro map are text"),
        (A | B, "a union of records needs a tag in each"),
        (list[int] | set[int], "may not contain more than one array-like"),
    ],
)
def test_what_avro_cannot_have_is_refused_when_the_topic_is_made(kind: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Topic("t", kind, codec=Avro())


def deep(levels: int) -> str:
    return '{"type":"array","items":' * levels + '"int"' + "}" * levels


@pytest.mark.parametrize(
    "schema",
    [
        "no such",
        "{",
        '{"type": "record"}',
        {"type": "nothing"},
        5,
        deep(100_000),
        " " * (2 << 20),
        {"a": "b"},
    ],
    ids=lambda schema: str(schema)[:20],
)
def test_a_schema_that_is_none_is_refused_by_a_sentence(schema: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot carry Line as application/avro: .*schema") as raised:
        Topic("t", Line, codec=Avro(schema))
    assert len(str(raised.value)) < 3000


def test_versions_need_a_registry() -> None:
    with pytest.raises(ConfigError, match="does not say by which schema it was written"):
        Topic("t", Line, codec=Avro(), version=1)


@pytest.mark.parametrize(
    "value", [b"", b"\x02", b"\x02a\x04\x00", b"\x80" * 20, b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"]
)
def test_bytes_that_do_not_fit_are_a_decode_error(value: bytes) -> None:
    topic = Topic("t", Line, codec=Avro())
    with pytest.raises(DecodeError):
        decode(topic, Line, Message("t", value))


def test_a_payload_that_does_not_fit_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="the payload does not fit its Avro schema"):
        Topic("t", Line, codec=Avro()).message(Line(5))  # type: ignore[arg-type] # that is what is tested


EMPTY = {"type": "record", "name": "Empty", "fields": [{"name": "a", "type": "null"}]}


@pytest.mark.parametrize(
    "items",
    [
        "null",
        {"type": "null"},
        EMPTY,
        {"type": "fixed", "name": "Nothing", "size": 0},
        {"type": "record", "name": "Outer", "fields": [{"name": "in", "type": EMPTY}]},
    ],
)
def test_an_array_whose_items_take_no_bytes_is_refused_wherever_it_stands(items: Any) -> None:
    array = {"type": "array", "items": items}
    record = {"type": "record", "name": "R", "fields": [{"name": "f", "type": ["null", array]}]}
    for schema in (array, record, {"type": "map", "values": array}, ["null", array]):
        with pytest.raises(TypeError, match="nothing bounds how many are read"):
            parsed_schema(schema)


def test_an_array_of_a_type_named_before_is_looked_into() -> None:
    fields = [{"name": "one", "type": EMPTY}, {"name": "many", "type": {"type": "array", "items": "Empty"}}]
    with pytest.raises(TypeError, match="nothing bounds how many are read"):
        parsed_schema({"type": "record", "name": "R", "namespace": "shop", "fields": fields})


@pytest.mark.parametrize("items", ["string", ["null", "string"], "R", {"type": "array", "items": "long"}])
def test_arrays_whose_items_take_bytes_are_read(items: Any) -> None:
    array = {"type": "array", "items": items}
    assert parsed_schema({"type": "record", "name": "R", "fields": [{"name": "f", "type": array}]})
