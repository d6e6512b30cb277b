"""Types inside types, in every codec: what a topic takes comes back equal, and what it cannot take is refused at once."""

import datetime as dt
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pydantic
import pytest

from tests.codecs.given import decode
from things_kit import ConfigError, Topic
from things_kit.codecs import JSON, Avro, CloudEvents, Codec, MemoryRegistry, MessagePack

ItemT = TypeVar("ItemT")
CODECS: dict[str, Callable[[], Codec]] = {
    "json": JSON,
    "json, registered": lambda: JSON(registry=MemoryRegistry()),
    "message pack": MessagePack,
    "avro": Avro,
    "avro, registered": lambda: Avro(namespace="shop", registry=MemoryRegistry()),
    "binary event": lambda: CloudEvents(source="/s"),
    "structured event": lambda: CloudEvents(source="/s", mode="structured"),
    "structured event of bytes": lambda: CloudEvents(source="/s", mode="structured", codec=MessagePack()),
}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Line(msgspec.Struct):
    sku: str
    count: int = 1


class Card(msgspec.Struct, tag=True):
    number: str


class Cash(msgspec.Struct, tag=True):
    coins: list[int] = []


class Page(msgspec.Struct, Generic[ItemT]):
    items: list[ItemT]
    next: str | None = None


class Tree(msgspec.Struct):
    value: int
    children: "list[Tree]" = []


class Address(pydantic.BaseModel):
    street: str
    number: Annotated[int, pydantic.Field(gt=0)]
    since: dt.datetime | None = None


class Aliased(pydantic.BaseModel):
    order_id: str = pydantic.Field(alias="orderId")


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Zoo(pydantic.BaseModel):
    animals: list[Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]]
    prices: dict[str, Decimal]
    seen: set[UUID]


class Strict(pydantic.BaseModel, strict=True):
    identity: UUID
    price: Decimal
    moment: dt.datetime
    pair: tuple[int, str]
    raw: bytes
    numbers: dict[int, str]


class Link(pydantic.BaseModel):
    url: pydantic.AnyUrl


class Whole(pydantic.RootModel[list[Address]]):
    pass


@dataclass
class Customer:
    name: str
    addresses: list[Address]
    tags: set[str] = field(default_factory=set)


@dataclass
class Plain:
    lines: tuple[Line, ...]
    best: Line | None


class Typed(TypedDict):
    when: dt.datetime
    line: Line


class Pair(NamedTuple):
    left: int
    right: Decimal


class Holder(msgspec.Struct):
    address: Address
    others: list[Address]


class All(msgspec.Struct):
    identity: UUID
    price: Decimal
    moment: dt.datetime
    day: dt.date
    clock: dt.time
    span: dt.timedelta
    colour: Colour
    level: Level
    raw: bytes
    names: set[str]
    frozen: frozenset[int]
    numbers: dict[int, str]
    by_id: dict[UUID, Line]
    pair: tuple[int, str]
    choice: Literal["a", "b"]
    payment: Card | Cash
    maybe: Line | None
    positive: Annotated[int, msgspec.Meta(ge=1)]
    ratio: float


ZONED = dt.datetime(2026, 3, 29, 1, 30, tzinfo=dt.timezone(dt.timedelta(hours=2)))
UTC = dt.datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=dt.UTC)
ALL = All(
    UUID(int=5), Decimal("10.50"), UTC, dt.date(2026, 1, 2), dt.time(3, 4, 5), dt.timedelta(days=1, seconds=2),
    Colour.BLUE, Level.HIGH, b"\x00\xff", {"a", "b"}, frozenset({1, 2}), {1: "one"}, {UUID(int=1): Line("s")},
    (1, "x"), "b", Cash([1, 2]), Line("m", 3), 7, 0.1,
)  # fmt: skip

STRICT = Strict(
    identity=UUID(int=5), price=Decimal("1.50"), moment=UTC, pair=(1, "x"), raw=b"text", numbers={1: "one"}
)

CASES: list[tuple[Any, Any]] = [
    (Line, Line("s", 2)),
    (list[Line], [Line("s"), Line("t", 5)]),
    (dict[str, Line], {"a": Line("s")}),
    (dict[str, list[Line | None]], {"a": [None, Line("s")]}),
    (Card | Cash, Cash([1])),
    (list[Card | Cash], [Card("1"), Cash()]),
    (Page[Line], Page([Line("s")], "n")),
    (Page[Card | Cash], Page([Card("1")])),
    (Page[Page[int]], Page([Page([1]), Page([])])),
    (Tree, Tree(1, [Tree(2), Tree(3, [Tree(4)])])),
    (All, ALL),
    (Plain, Plain((Line("a"), Line("b")), None)),
    (Typed, {"when": UTC, "line": Line("s")}),
    (Pair, Pair(1, Decimal("2.50"))),
    (Colour, Colour.RED),
    (set[UUID], {UUID(int=1), UUID(int=2)}),
    (tuple[int, Line], (1, Line("s"))),
    (Address, Address(street="s", number=1, since=UTC)),
    (list[Address], [Address(street="s", number=1)]),
    (dict[str, Address | None], {"a": None, "b": Address(street="s", number=2)}),
    (Address | None, Address(street="s", number=2)),
    (Aliased, Aliased(orderId="o")),
    (list[Aliased], [Aliased(orderId="o")]),
    (Zoo, Zoo(animals=[Cat(lives=9), Dog(name="d")], prices={"a": Decimal("1.10")}, seen={UUID(int=3)})),
    (Cat | Dog, Dog(name="d")),
    (Strict, STRICT),
    (list[Strict], [STRICT]),
    (Link, Link(url=pydantic.AnyUrl("http://example.com/"))),
    (Whole, Whole([Address(street="s", number=1)])),
    (dict[int, Address], {1: Address(street="s", number=1)}),
    (Customer, Customer("n", [Address(street="s", number=1)], {"t"})),
    (list[Customer], [Customer("n", [])]),
    (Holder, Holder(Address(street="s", number=1), [Address(street="t", number=2)])),
    (Annotated[list[Address], pydantic.Field(min_length=1)], [Address(street="s", number=1)]),
    (dt.datetime, ZONED),
    (dict, {"a": [1, None, {"b": "c"}]}),
]  # fmt: skip


UNSAID: dict[str, set[Any]] = {"avro": {dict, Link}, "avro, registered": {dict, Link}}
"""What a codec has no word for."""


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("kind", "payload"), CASES, ids=[str(kind) for kind, _ in CASES])
async def test_what_a_topic_takes_comes_back_equal(kind: Any, payload: Any, codec: str) -> None:
    made: Any = Topic
    if kind in UNSAID.get(codec, ()):
        with pytest.raises(ConfigError, match="cannot carry"):
            made("t", kind, codec=CODECS[codec]())
        return
    topic: Topic[Any] = made("t", kind, codec=CODECS[codec]())
    await topic.prepare()
    back = decode(topic, kind, topic.message(payload))
    assert back == payload
    assert type(back) is type(payload)


class Unknown:
    pass


class Holds(msgspec.Struct):
    unknown: Unknown


REFUSED: list[Any] = [
    Unknown,
    list[Unknown],
    dict[str, Unknown | None],
    Holds,
    Page[Unknown],
    Line | Tree,  # two without tags
    list[Line | Tree],
    Line | Plain,
    dt.datetime | str,
    UUID | Decimal,
    set[int] | list[int],
    Address | Line,  # pydantic checks no Struct, msgspec tells no model
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", REFUSED, ids=str)
def test_what_a_codec_cannot_do_is_refused_when_the_topic_is_made(kind: Any, codec: str) -> None:
    with pytest.raises(ConfigError, match="cannot carry") as raised:
        Topic("t", kind, codec=CODECS[codec]())
    assert "\n" not in str(raised.value)
