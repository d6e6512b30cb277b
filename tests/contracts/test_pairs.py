"""Each two types: where the verdict is that one reads what the other writes, it does."""

import datetime as dt
import enum
import json
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from msgspec import Meta

from tests.codecs.given import decode
from things_kit import DecodeError, Message, Topic
from things_kit.contracts.asyncapi import asyncapi
from things_kit.contracts.diff import diff


class Letter(enum.Enum):
    A = "a"
    B = "b"


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class One(msgspec.Struct):
    x: int


class OneByDefault(msgspec.Struct):
    x: int = 0


class OneAlone(msgspec.Struct, forbid_unknown_fields=True):
    x: int


class OneUnset(msgspec.Struct):
    x: int | msgspec.UnsetType = msgspec.UNSET


class Listed(msgspec.Struct, array_like=True):
    x: int
    y: int = 0


class ListedAlone(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    x: int


class First(msgspec.Struct, tag="first"):
    x: int


class Second(msgspec.Struct, tag="second"):
    x: int


class Third(msgspec.Struct, tag=3):
    x: int


class Pair(NamedTuple):
    a: int
    b: int = 0


class Values(TypedDict, total=False):
    x: int


class Model(pydantic.BaseModel):
    x: int


class ByText(pydantic.BaseModel):
    x: dict[str, int]


class ByNumber(pydantic.BaseModel):
    x: dict[int, int]


class ByIdentity(pydantic.BaseModel):
    x: dict[UUID, int]


class AtLeastOne(pydantic.BaseModel):
    x: Annotated[dict[str, int], pydantic.Field(min_length=1)]


class AtAnyTime(pydantic.BaseModel):
    x: dt.datetime


class Aware(pydantic.BaseModel):
    x: pydantic.AwareDatetime


class Naive(pydantic.BaseModel):
    x: pydantic.NaiveDatetime


class Short(pydantic.BaseModel):
    x: Annotated[str, pydantic.Field(max_length=2)]


class Forbidding(pydantic.BaseModel, extra="forbid"):
    x: int


class Past(pydantic.BaseModel):
    x: pydantic.PastDate


class Day(pydantic.BaseModel):
    x: dt.date


class AtLeastFive(pydantic.BaseModel):
    x: dict[Annotated[int, pydantic.Field(ge=5)], int]


class Text(pydantic.BaseModel):
    x: str


PLAIN, ZONED = dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
LONG_AGO, TO_COME = dt.date(1970, 1, 1), dt.date(9999, 1, 1)
TYPES: list[tuple[Any, list[Any]]] = [
    (int, [0, -5, 2**60]), (float, [0.5, 1.0, -1e300]), (bool, [True, False]), (str, ["", "a", "5", "a" * 30]),
    (int | None, [None, 3]), (int | str, [3, "x"]), (type(None), [None]),
    (bytearray, [bytearray(b"a")]), (Annotated[bytes, Meta(min_length=1)], [b"a", b"ab"]),
    (Annotated[bytes, Meta(min_length=2)], [b"ab", b"abc"]), (Annotated[bytes, Meta(max_length=1)], [b"", b"a"]),
    (Annotated[bytes, Meta(max_length=2)], [b"", b"ab"]), (Annotated[str, Meta(min_length=1)], ["a"]),
    (Annotated[str, Meta(max_length=1)], ["", "a", "ü", "\U0001f600"]), (Annotated[str, Meta(pattern="^a")], ["ab"]),
    (dict[str, int], [{}, {"a": 1}, {"1": 1}]), (dict[int, int], [{}, {1: 1}]), (dict[UUID, int], [{UUID(int=1): 1}]),
    (dict[Annotated[int, Meta(ge=5)], int], [{5: 1}]), (dict[float, int], [{1.5: 1}]), (dict[Letter, int], [{Letter.A: 1}]),
    (dict[Number, int], [{Number.ONE: 1}]), (dict[Literal["a", "z"], int], [{"z": 1}]), (dict[dt.date, int], [{LONG_AGO: 1}]),
    (dict[Annotated[str, Meta(min_length=2)], int], [{"ab": 1}]), (Annotated[dict[str, int], Meta(min_length=1)], [{"a": 1}]),
    (Annotated[dict[str, int], Meta(max_length=1)], [{}, {"a": 1}]), (dict, [{}, {"a": None}, {"x": [1]}]),
    (Any, [None, 1, "a", [1], {"a": 2}]), (list, [[], ["a"], [None]]), (list[int], [[], [1], [1, 2, 3]]),
    (Annotated[list[int], Meta(min_length=1)], [[1], [1, 2]]), (Annotated[list[int], Meta(max_length=1)], [[], [1]]),
    (set[int], [set(), {1, 2}]), (frozenset[str], [frozenset("a")]), (Annotated[set[int], Meta(min_length=2)], [{1, 2}]),
    (tuple[int, ...], [(), (1, 2)]), (Annotated[tuple[int, ...], Meta(min_length=1)], [(1,)]), (tuple[int, int], [(1, 2)]),
    (tuple[int], [(1,)]), (Pair, [Pair(1), Pair(1, 2)]), (dt.datetime, [PLAIN, ZONED]),
    (Annotated[dt.datetime, Meta(tz=True)], [ZONED]), (Annotated[dt.datetime, Meta(tz=False)], [PLAIN]),
    (dt.time, [dt.time(1), ZONED.timetz()]), (Annotated[dt.time, Meta(tz=True)], [ZONED.timetz()]),
    (Annotated[dt.time, Meta(tz=False)], [dt.time(1)]), (dt.date, [LONG_AGO]), (dt.timedelta, [dt.timedelta(1)]),
    (UUID, [UUID(int=1)]), (Decimal, [Decimal("1.5"), Decimal("NaN")]), (Letter, [Letter.A, Letter.B]), (Number, [Number.ONE]),
    (Literal["a"], ["a"]), (Literal["a", "b", "c"], ["c"]), (Literal[1, 2], [1, 2]), (Literal["a", None], ["a", None]),
    (Annotated[int, Meta(ge=0)], [0, 5]), (Annotated[int, Meta(gt=0)], [1]), (Annotated[int, Meta(lt=10)], [9, -5]),
    (Annotated[int, Meta(multiple_of=2)], [0, 4]), (Annotated[float, Meta(ge=0)], [0.0, 0.5]),
    (Annotated[float, Meta(gt=0, lt=1)], [0.5]), (One, [One(1)]), (OneByDefault, [OneByDefault(), OneByDefault(1)]),
    (OneAlone, [OneAlone(1)]), (OneUnset, [OneUnset(), OneUnset(1)]), (Listed, [Listed(1)]), (ListedAlone, [ListedAlone(1)]),
    (First, [First(1)]), (Second, [Second(1)]), (First | Second, [First(1), Second(2)]), (Third, [Third(1)]),
    (Values, [{}, {"x": 1}]), (Model, [Model(x=1)]), (ByText, [ByText(x={"a": 1}), ByText(x={})]), (ByNumber, [ByNumber(x={1: 1})]),
    (ByIdentity, [ByIdentity(x={UUID(int=1): 1})]), (AtLeastFive, [AtLeastFive(x={5: 1})]), (AtLeastOne, [AtLeastOne(x={"a": 1})]),
    (AtAnyTime, [AtAnyTime(x=PLAIN), AtAnyTime(x=ZONED)]), (Aware, [Aware(x=ZONED)]), (Naive, [Naive(x=PLAIN)]),
    (Short, [Short(x="ab")]), (Forbidding, [Forbidding(x=1)]), (Past, [Past(x=LONG_AGO)]), (Day, [Day(x=LONG_AGO), Day(x=TO_COME)]),
    (Text, [Text(x="a")]),
]  # fmt: skip


class Side:
    """A type as a topic's: what its document says, and what it writes."""

    def __init__(self, kind: Any, payloads: list[Any]) -> None:
        self.kind = kind
        self.topic: Topic[Any] = Topic("t", kind)
        self.document = asyncapi("t", topics=[self.topic])
        self.messages = self.topic.messages(payloads)

    def reads(self, message: Message) -> bool:
        try:
            decode(self.topic, self.kind, message)
        except DecodeError:
            return False
        return True


@pytest.fixture(scope="module")
def sides() -> list[Side]:
    return [Side(kind, payloads) for kind, payloads in TYPES]


def test_no_two_types_are_called_compatible_that_are_not(sides: list[Side]) -> None:
    wrong, right = [], 0
    for writer in sides:
        for reader in sides:
            if any(finding.direction == "backward" for finding in diff(writer.document, reader.document)):
                continue
            right += 1
            wrong += [
                f"{reader.kind} does not read {message.value!r} of {writer.kind}"
                for message in writer.messages
                if not reader.reads(message)
            ]
    assert wrong == []
    assert right > 2 * len(sides)


def test_every_type_is_compatible_with_itself_and_reads_what_it_writes(sides: list[Side]) -> None:
    for side in sides:
        assert diff(side.document, side.document) == []
        assert all(map(side.reads, side.messages))


def test_what_a_type_writes_is_valid_by_its_own_schema(sides: list[Side]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for side in sides:
        if side.topic.codec is None:
            continue  # the text itself
        (message,) = side.document["components"]["messages"].values()
        schema = {"allOf": [message["payload"]], "components": side.document["components"]}
        validator = jsonschema.Draft7Validator(schema)
        for each in side.messages:
            errors = [error.message for error in validator.iter_errors(json.loads(each.value))]
            assert not errors, (side.kind, each.value)
