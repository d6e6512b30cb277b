"""AsyncAPI documents of apps and topics."""

import enum
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

import msgspec
import pydantic
import pytest
from google.protobuf.struct_pb2 import Struct
from typer.testing import CliRunner

from tests.contracts.test_pairs import TYPES
from things_kit import App, Message, Topic
from things_kit.cli.app import app as program
from things_kit.codecs import Avro, CloudEvents, MessagePack, Protobuf
from things_kit.codecs.json_schema import Schemas
from things_kit.contracts.asyncapi import asyncapi
from things_kit.contracts.examples import example
from things_kit.contracts.page import page
from things_kit.middleware import compress
from things_kit.modules import config, kafka, memory

ItemT = TypeVar("ItemT")


class Status(enum.Enum):
    NEW = "new"
    DONE = "done"


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """An order <of> somebody."""

    id: UUID
    at: datetime
    tags: set[str]
    price: Decimal
    status: Status = Status.NEW
    count: Annotated[int, msgspec.Meta(ge=1, description="How many.")] = 1
    note: str | None = None


class Card(msgspec.Struct, tag=True):
    number: str


class Cash(msgspec.Struct, tag=True):
    coins: list[int]


class Page(msgspec.Struct, Generic[ItemT]):
    items: list[ItemT]
    next: "Page[ItemT] | None" = None


class Tree(msgspec.Struct):
    children: "list[Tree]" = []


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    friend: "Dog | None" = None


class Zoo(pydantic.BaseModel):
    animals: list[Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]]
    pair: tuple[int, str]


@dataclass
class Data:
    zoo: Zoo
    positive: Annotated[int, pydantic.Field(gt=0)]


orders = Topic("shop/orders", Order, key="id", headers={"source": "shop"})
payments = Topic[Card | Cash]("payments", {"paid.card": Card, "paid.cash": Cash}, by="type", version=1)
zoos = Topic("zoos", Zoo, codec=MessagePack())
datas = Topic("datas", Data)
trees = Topic("trees", Tree)


async def handle(order: Order) -> None:
    """Bills an order."""


app = App(
    config.module,
    kafka.module,
    memory.module,
    kafka.consume(orders, group="billing", handler=handle, publish=payments),
    memory.consume(["plain", trees], group=None, handler=print),
)
app.publishes(zoos, datas)


@app.on(zoos, group="keepers", broker="memory")
async def keep(zoo: Zoo) -> None:
    """Keeps a zoo."""


KINDS: list[Any] = [Page[Order], Page[Page[int]], Tree, Card | Cash, Zoo, Data, Cat | Dog, bytes, str, int]


def topic_of(kind: Any) -> Topic[Any]:
    return Topic("a/b", kind)


def references(found: Any) -> list[str]:
    if isinstance(found, dict):
        own = [found["$ref"]] if isinstance(found.get("$ref"), str) else []
        return own + [each for value in found.values() for each in references(value)]
    return [each for value in found for each in references(value)] if isinstance(found, list) else []


def at(document: Any, reference: str) -> Any:
    for step in reference.removeprefix("#/").split("/"):
        document = document[step.replace("~1", "/").replace("~0", "~")]
    return document


def test_a_payload_is_described_completely() -> None:
    schemas = Schemas()
    assert schemas.of(Order) == {"$ref": "#/components/schemas/Order"}
    assert schemas.components["Order"] == {
        "title": "Order",
        "description": "An order <of> somebody.",
        "type": "object",
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            "at": {"type": "string", "format": "date-time"},
            "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
            "price": {"type": "string", "format": "decimal"},
            "status": {"allOf": [{"$ref": "#/components/schemas/Status"}], "default": "new"},
            "count": {"type": "integer", "minimum": 1, "description": "How many.", "default": 1},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        },
        "required": ["id", "at", "tags", "price"],
        "additionalProperties": False,
    }
    assert schemas.components["Status"] == {"title": "Status", "enum": ["new", "done"]}


def test_a_document_says_who_sends_and_receives_what() -> None:
    document = app.asyncapi("shop", "1.2.3")
    assert document["asyncapi"] == "3.0.0"
    assert document["info"] == {"title": "shop", "version": "1.2.3"}
    assert {channel["address"] for channel in document["channels"].values()} == {
        "shop/orders", "payments", "plain", "trees", "zoos", "datas",
    }  # fmt: skip
    receive = document["operations"]["receive_shop_orders_billing"]
    assert receive["x-consumer-group"] == "billing"
    assert receive["description"] == "Bills an order."
    assert document["operations"]["send_payments"]["action"] == "send"
    assert document["operations"]["receive_zoos_keepers"]["description"] == "Keeps a zoo."
    message = at(document, at(document, receive["messages"][0]["$ref"])["$ref"])
    assert message["x-key"] == "id"
    assert message["headers"]["properties"]["source"] == {"type": "string", "const": "shop"}
    assert at(document, "#/channels/payments/messages").keys() == {"paid.card", "paid.cash"}


@pytest.mark.parametrize(
    "kind", [Page[Order], Page[Page[int]], Tree, Card | Cash, Zoo, Data, list[Zoo], Cat | Dog], ids=str
)
def test_every_reference_leads_somewhere(kind: Any) -> None:
    document = asyncapi("t", topics=[Topic("t", kind)])
    assert references(document)
    for reference in references(document):
        at(document, reference)
    text = json.dumps(document)
    assert "$defs" not in text
    assert "prefixItems" not in text
    assert '"discriminator"' not in text
    assert (
        example(
            document,
            at(document, "#/components/messages")[next(iter(document["components"]["messages"]))]["payload"],
        )
        is not None
    )


def test_a_message_says_what_may_have_been_done_to_its_value() -> None:
    document = asyncapi("t", topics=[Topic("t", Card, transforms=[compress("gzip")]), Topic("plain", Zoo)])
    headers = document["components"]["messages"]["Card"]["headers"]["properties"]
    assert "gzip" in headers["content-encoding"]["description"]
    assert "content-encoding" not in document["components"]["messages"]["Zoo"]["headers"]["properties"]


answering = App(config.module, memory.module)


@answering.on(Topic("orders", Order, reply=Card), group="billing")
async def answer(order: Order) -> Card:
    raise NotImplementedError


def test_a_topic_that_is_answered_says_with_what_and_where() -> None:
    document = answering.asyncapi()
    reply = document["operations"]["receive_orders_billing"]["reply"]
    assert reply["address"] == {"location": "$message.header#/reply-to"}
    channel = at(document, reply["channel"]["$ref"])
    assert channel["address"] is None
    (said,) = reply["messages"]
    message = at(document, at(document, said["$ref"])["$ref"])
    assert (message["name"], message["contentType"]) == ("Card", "application/json")
    assert message["correlationId"] == {"location": "$message.header#/correlation-id"}
    assert "orders_reply" in page(document)
    headers = document["components"]["messages"]["Order"]["headers"]["properties"]
    assert {"reply-to", "correlation-id", "deadline"} <= headers.keys()


@pytest.mark.parametrize("kind", [str, bytes, Message, list[Card], Card | Cash])
def test_whatever_answers_is_described(kind: Any) -> None:
    document = asyncapi("t", topics=[Topic("orders", Order, reply=kind)])
    for reference in references(document):
        at(document, reference)


def test_the_page_shows_everything_and_escapes_it() -> None:
    text = page(app.asyncapi("a <b>"))
    assert "a &lt;b&gt;" in text
    assert "An order &lt;of&gt; somebody." in text
    for word in ("shop/orders", "billing", "paid.card", "Bills an order.", "How many."):
        assert word in text
    assert "<script" not in text
    assert "http://" not in text


def run(*words: str) -> Any:
    return CliRunner().invoke(program, list(words))


def test_the_command_prints_json_and_yaml_and_writes_a_page(tmp_path: Path) -> None:
    target = f"{__name__}:app"
    printed = run("asyncapi", target)
    assert printed.exit_code == 0, printed.output
    document = json.loads(printed.stdout)
    assert document["channels"] == app.asyncapi("x")["channels"]
    import yaml  # noqa: PLC0415 - of this test alone

    assert yaml.safe_load(run("asyncapi", target, "--yaml").stdout) == document
    file = tmp_path / "page.html"
    assert run("asyncapi", target, "--html", str(file)).exit_code == 0
    assert file.read_text().startswith("<!doctype html>")
    assert json.loads(run("asyncapi", f"{__name__}:orders", f"{__name__}:trees").stdout)["channels"].keys() == {
        "shop_orders", "trees",
    }  # fmt: skip


@pytest.mark.parametrize("target", ["nothing", "no.such:app", f"{__name__}:nothing", f"{__name__}:ItemT"])
def test_what_is_not_there_is_wrong_use(target: str) -> None:
    assert run("asyncapi", target).exit_code == 2


# --- valid by AsyncAPI's own schema


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The official JSON schema, from the package registry of Node; never committed."""
    jsonschema = pytest.importorskip("jsonschema")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("specs")
    done = subprocess.run(
        [npm, "pack", "--silent", "@asyncapi/specs@6.11.1"],
        cwd=folder,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("the package @asyncapi/specs cannot be fetched here")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        schema = archive.extractfile("package/schemas/3.0.0-without-$id.json")
        assert schema is not None
        return jsonschema.Draft7Validator(json.load(schema))


MADE: list[App | Topic[Any]] = [
    app,
    answering,
    *map(topic_of, KINDS),
    Topic("events", Card, codec=CloudEvents(source="/s")),
    Topic("avro", Tree, codec=Avro()),
    Topic("protobuf", Struct, codec=Protobuf()),
    Topic("compressed", Card, transforms=[compress("gzip")]),
]


def document_of(made: App | Topic[Any]) -> dict[str, Any]:
    document = made.asyncapi() if isinstance(made, App) else asyncapi("t", topics=[made])
    found: dict[str, Any] = json.loads(json.dumps(document))
    return found


@pytest.mark.parametrize("made", MADE, ids=lambda made: "app" if isinstance(made, App) else str(made))
def test_a_document_is_valid_by_asyncapi_s_own_schema(made: App | Topic[Any], official: Any) -> None:
    errors = [
        f"{error.json_path}: {error.message[:200]}" for error in official.iter_errors(document_of(made))
    ]
    assert not errors


def test_a_document_of_all_that_types_can_say_is_valid(official: Any) -> None:
    topics: list[Topic[Any]] = [Topic(f"t{number}", kind) for number, (kind, _) in enumerate(TYPES)]
    document = json.loads(json.dumps(asyncapi("t", topics=topics)))
    assert [f"{error.json_path}: {error.message[:200]}" for error in official.iter_errors(document)] == []


def test_protobuf_s_nested_and_repeated_fields_maps_and_enums_are_described() -> None:
    schemas = asyncapi("t", topics=[Topic("t", Struct, codec=Protobuf())])["components"]["schemas"]
    value = {"$ref": "#/components/schemas/Value"}
    assert schemas["Struct"]["properties"] == {"fields": {"type": "object", "additionalProperties": value}}
    assert schemas["Value"]["properties"]["null_value"] == {"enum": ["NULL_VALUE"]}
    assert schemas["ListValue"]["properties"] == {"values": {"type": "array", "items": value}}
