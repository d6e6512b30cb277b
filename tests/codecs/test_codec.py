from dataclasses import dataclass

import msgspec
import pydantic
import pytest

from things_kit import DecodeError
from things_kit.codecs.codec import JSONCodec, MessagePackCodec, codec_for


class Order(msgspec.Struct):
    id: int
    name: str = ""


@dataclass
class Item:
    id: int


class Model(pydantic.BaseModel):
    id: int


@pytest.mark.parametrize(
    ("content_type", "codec"),
    [
        (None, JSONCodec),
        ("application/json", JSONCodec),
        ("APPLICATION/JSON; charset=utf-8", JSONCodec),
        (" text/json ", JSONCodec),
        ("application/vnd.order.v2+json", JSONCodec),
        ("application/cloudevents+json;x=y", JSONCodec),
        ("application/msgpack", MessagePackCodec),
        ("application/x-msgpack", MessagePackCodec),
        ("application/vnd.msgpack; v=1", MessagePackCodec),
    ],
)
def test_a_content_type_has_a_codec(content_type: str | None, codec: type) -> None:
    assert isinstance(codec_for(content_type), codec)


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/xml", "json", "application/json+xml"]
)
def test_an_unknown_content_type_is_a_decode_error_that_names_what_is_known(content_type: str) -> None:
    with pytest.raises(DecodeError, match=r"unknown content type .*; known are application/json, ") as raised:
        codec_for(content_type)
    assert repr(content_type) in str(raised.value)


@pytest.mark.parametrize("codec", [JSONCodec(), MessagePackCodec()], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    "value", [Order(1, "x"), Item(1), Model(id=1), {"a": [1, None]}, [1, 2], "x", 5], ids=str
)
def test_what_is_encoded_can_be_decoded(codec: JSONCodec | MessagePackCodec, value: object) -> None:
    assert codec.decoder(type(value))(codec.encode(value)) == value


@pytest.mark.parametrize("codec", [JSONCodec(), MessagePackCodec()], ids=["json", "msgpack"])
def test_what_cannot_be_encoded_is_a_type_error(codec: JSONCodec | MessagePackCodec) -> None:
    with pytest.raises(TypeError):
        codec.encode(object())


@pytest.mark.parametrize("codec", [JSONCodec(), MessagePackCodec()], ids=["json", "msgpack"])
def test_models_are_encoded_wherever_they_are(codec: JSONCodec | MessagePackCodec) -> None:
    assert codec.decoder(list[Model])(codec.encode([Model(id=1)])) == [Model(id=1)]
    assert codec.decoder(dict)(codec.encode({"a": {"b": Model(id=1)}})) == {"a": {"b": {"id": 1}}}
