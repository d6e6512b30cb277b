import sys
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

from things_kit import ConfigError, DecodeError, Message
from things_kit.codecs import payload
from things_kit.codecs.payload import payload_decoder


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
    class Plain:
        pass

    with pytest.raises(ConfigError, match="a handler cannot take"):
        payload_decoder(Plain)


def test_a_type_that_makes_no_sense_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="a handler cannot take"):
        payload_decoder(Struct | Data)


def test_a_sender_that_invents_content_types_does_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode = payload_decoder(Struct)
    (decoders,) = (
        cell.cell_contents for cell in decode.__closure__ or () if isinstance(cell.cell_contents, dict)
    )
    for n in range(1000):
        assert decode(message(b'{"id": 1}', f"application/json; n={n}")) == Struct(1)
    assert len(decoders) <= 100


def test_decoding_needs_no_pydantic() -> None:
    assert "pydantic" not in vars(payload)
    assert sys.modules["things_kit.codecs.codec"].__dict__.get("pydantic") is None
