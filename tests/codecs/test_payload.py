import codecs
import sys
from dataclasses import dataclass
from types import FunctionType
from typing import Annotated, Any, Generic, NamedTuple, TypedDict, TypeVar, cast

import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from typing_extensions import TypeAliasType

from things_kit import ConfigError, DecodeError, Message, Topic
from things_kit.codecs import models, payload
from things_kit.codecs.payload import payload_decoder
from things_kit.codecs.registered import codec_for


class Struct(msgspec.Struct):
    id: int


@dataclass
class Data:
    id: int


class Typed(TypedDict):
    id: int


class Model(pydantic.BaseModel):
    id: int


def message(value: bytes, content_type: str | None = None) -> Message:
    return Message("t", value, headers={} if content_type is None else {"content-type": content_type})


ANY = cast("type[Any]", Any)


def encoded(value: Any, content_type: str) -> bytes:
    topic = Topic("t", ANY, codec=codec_for(content_type))
    return topic.message(value).value


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Struct, Struct(5)),
        (Data, Data(5)),
        (Typed, {"id": 5}),
        (Model, Model(id=5)),
        (dict, {"id": 5}),
        (dict[str, int], {"id": 5}),
        (Struct | None, Struct(5)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("value", "content_type"),
    [
        (b'{"id": 5}', None),
        (b'{"id": 5}', "application/json; charset=utf-8"),
        (msgspec.msgpack.encode({"id": 5}), "application/msgpack"),
    ],
    ids=["none", "json", "msgpack"],
)
def test_an_object_is_decoded_to_every_kind(
    kind: Any, payload: Any, value: bytes, content_type: str | None
) -> None:
    assert payload_decoder(kind)(message(value, content_type)) == payload


@pydantic.dataclasses.dataclass
class Checked:
    id: pydantic.PositiveInt


@dataclass
class Holds:
    model: Model


@dataclass
class Constrained:
    id: pydantic.PositiveInt


class TypedHolds(TypedDict):
    models: list[Model]


class StructHolds(msgspec.Struct):
    models: dict[str, Model]
    name: str


class StructHoldsChecked(msgspec.Struct):
    checked: Checked


class NamedHolds(NamedTuple):
    model: Model


ItemT = TypeVar("ItemT")


@dataclass
class Box(Generic[ItemT]):
    item: ItemT


Models = TypeAliasType("Models", dict[str, Model])

WITH_PYDANTIC = [
    (list[Model], [{"id": 5}], [Model(id=5)]),
    (tuple[Model, ...], [{"id": 5}], (Model(id=5),)),
    (dict[str, Model], {"a": {"id": 5}}, {"a": Model(id=5)}),
    (dict[str, list[Model | None]], {"a": [None, {"id": 5}]}, {"a": [None, Model(id=5)]}),
    (Model | None, {"id": 5}, Model(id=5)),
    (Model | None, None, None),
    (Model | Checked, {"id": 5}, Model(id=5)),
    (Holds, {"model": {"id": 5}}, Holds(Model(id=5))),
    (TypedHolds, {"models": [{"id": 5}]}, {"models": [Model(id=5)]}),
    (
        list[StructHolds],
        [{"models": {"a": {"id": 5}}, "name": "n"}],
        [StructHolds({"a": Model(id=5)}, "n")],
    ),
    (NamedHolds, [{"id": 5}], NamedHolds(Model(id=5))),
    (Box[Model], {"item": {"id": 5}}, Box(Model(id=5))),
    (Annotated[Model, "described"], {"id": 5}, Model(id=5)),
    (Annotated[int, pydantic.Field(gt=0)], 5, 5),
    (Models, {"a": {"id": 5}}, {"a": Model(id=5)}),
    (Checked, {"id": 5}, Checked(5)),
    (list[Checked], [{"id": 5}], [Checked(5)]),
    (Constrained, {"id": 5}, Constrained(5)),
]


@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack"])
@pytest.mark.parametrize(("kind", "value", "payload"), WITH_PYDANTIC, ids=str)
def test_pydantic_is_decoded_wherever_in_a_type_it_is(
    kind: Any, value: Any, payload: Any, content_type: str
) -> None:
    sent = encoded(value, content_type)
    assert payload_decoder(kind)(message(sent, content_type)) == payload


@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack"])
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Checked, {"id": -5}),
        (list[Checked], [{"id": -5}]),
        (Constrained, {"id": -5}),
        (Annotated[int, pydantic.Field(gt=0)], -5),
        (Holds, {"model": {"id": "x"}}),
        (list[Model], {"id": 5}),
    ],
    ids=str,
)
def test_what_pydantic_checks_is_checked_wherever_in_a_type_it_is(
    kind: Any, value: Any, content_type: str
) -> None:
    with pytest.raises(DecodeError):
        payload_decoder(kind)(message(encoded(value, content_type), content_type))


class Plain:
    pass


class StructOfPlain(msgspec.Struct):
    plain: Plain


class StructOfBoth(msgspec.Struct):
    plain: Plain
    model: Model


class StructMayHold(msgspec.Struct):
    id: int
    plain: Plain | None = None


@pytest.mark.parametrize(
    "kind",
    [
        list[Plain],
        dict[str, Plain],
        Plain | None,
        StructOfPlain,
        list[StructOfPlain],
        StructHoldsChecked,
        StructOfBoth,
    ],
    ids=str,
)
def test_a_type_in_which_something_cannot_be_decoded_is_refused_at_once(kind: Any) -> None:
    with pytest.raises(ConfigError, match="a handler cannot take"):
        payload_decoder(kind)


def test_a_field_that_no_message_has_may_be_of_any_type() -> None:
    assert payload_decoder(StructMayHold)(message(b'{"id": 5}')) == StructMayHold(5)


@pytest.mark.parametrize("kind", [Struct, Model, list[Model], dict])
def test_a_byte_order_mark_of_utf_8_is_passed_over(kind: Any) -> None:
    value = b'[{"id": 5}]' if kind == list[Model] else b'{"id": 5}'
    assert payload_decoder(kind)(message(codecs.BOM_UTF8 + value)) == payload_decoder(kind)(message(value))


@pytest.mark.parametrize("kind", [Struct, Model])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_another_byte_order_mark_is_named(kind: Any, encoding: str) -> None:
    value = "\ufeff".encode(encoding) if encoding.endswith("be") else b""
    with pytest.raises(DecodeError, match="by its byte order mark it is UTF-16 or UTF-32; JSON is UTF-8"):
        payload_decoder(kind)(message(value + '{"id": 5}'.encode(encoding)))


@pytest.mark.parametrize(
    ("kind", "value", "payload"), [(int, b"7", 7), (list, b"[1]", [1]), (list[int], b"[1]", [1])]
)
def test_other_types_are_decoded_too(kind: Any, value: bytes, payload: Any) -> None:
    assert payload_decoder(kind)(message(value)) == payload


def test_bytes_are_the_value_itself_whatever_the_content_type() -> None:
    assert payload_decoder(bytes)(message(b"\xff\x00", "no/such")) == b"\xff\x00"


def test_str_is_the_text_of_the_value() -> None:
    assert payload_decoder(str)(message('"grün"'.encode())) == '"grün"'


@pytest.mark.parametrize(
    ("kind", "value", "content_type"),
    [
        (str, b"\xff", None),
        (Struct, b"", None),
        (Struct, b"{", None),
        (Struct, b'{"id": "x"}', None),
        (Struct, b"{}", None),
        (Model, b'{"id": "x"}', None),
        (Model, b"\x81", "application/msgpack"),
        (int, b"7", "application/msgpack+nothing"),
        (dict, b'{"a": "\xff"}', None),
        (Struct, b'{"id": 5}', "application/msgpack"),
        (list, b"[" * 100_000, None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_that_is_a_decode_error(kind: Any, value: bytes, content_type: str | None) -> None:
    with pytest.raises(DecodeError):
        payload_decoder(kind)(message(value, content_type))


def test_a_decode_error_names_the_type_and_has_its_cause() -> None:
    with pytest.raises(DecodeError, match="the value is not Struct: ") as raised:
        payload_decoder(Struct)(message(b"{}"))
    assert isinstance(raised.value.__cause__, msgspec.ValidationError)


def test_a_type_that_nothing_decodes_to_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="a handler cannot take"):
        payload_decoder(Plain)


def test_a_type_that_makes_no_sense_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="a handler cannot take"):
        payload_decoder(Struct | Data)


def held_by(function: Any) -> list[Any]:
    return [cell.cell_contents for cell in function.__closure__]


def test_a_sender_that_invents_content_types_does_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode = payload_decoder(Struct)
    (general,) = (each for each in held_by(decode) if isinstance(each, FunctionType))
    (decoders,) = (each for each in held_by(general) if isinstance(each, dict))
    for n in range(1000):
        assert decode(message(b'{"id": 1}', f"application/json; n={n}")) == Struct(1)
    assert len(decoders) <= 100


def test_decoding_needs_no_pydantic() -> None:
    assert "pydantic" not in vars(payload)
    assert "pydantic" not in vars(models)
    assert sys.modules["things_kit.codecs.json_codec"].__dict__.get("pydantic") is None


@pytest.mark.parametrize("name", ["content-type", "Content-Type", "CONTENT-TYPE", "Content-type"])
def test_the_content_type_is_read_in_any_case(name: str) -> None:
    sent = Message("t", msgspec.msgpack.encode({"id": 5}), headers={"a": "b", name: "application/msgpack"})
    assert payload_decoder(Struct)(sent) == Struct(5)


def test_the_content_type_as_we_write_it_goes_first() -> None:
    headers = {"Content-Type": "text/plain", "content-type": "application/json"}
    assert payload_decoder(Struct)(Message("t", b'{"id": 5}', headers=headers)) == Struct(5)
