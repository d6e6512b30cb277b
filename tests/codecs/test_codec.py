from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pydantic
import pytest

from things_kit import DecodeError, Message, Topic
from things_kit.codecs import JSON, CloudEvents, MessagePack
from things_kit.codecs.registered import codec_for


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
        (None, JSON),
        ("application/json", JSON),
        ("APPLICATION/JSON; charset=utf-8", JSON),
        (" text/json ", JSON),
        ("application/vnd.order.v2+json", JSON),
        ("application/cloudevents+json;x=y", CloudEvents),
        ("application/msgpack", MessagePack),
        ("application/x-msgpack", MessagePack),
        ("application/vnd.msgpack; v=1", MessagePack),
    ],
)
def test_a_content_type_has_a_codec(content_type: str | None, codec: type) -> None:
    assert isinstance(codec_for(content_type), codec)


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/xml", "json", "application/json+xml"]
)
def test_an_unknown_content_type_is_a_decode_error_that_names_what_is_known(content_type: str) -> None:
    with pytest.raises(DecodeError, match=r"unknown content type .*; known are application/avro, ") as raised:
        codec_for(content_type)
    assert repr(content_type) in str(raised.value)


ANY = cast("type[Any]", Any)


def encoded(codec: JSON | MessagePack, value: object) -> Message:
    topic = Topic("t", ANY, codec=codec)
    return topic.message(value)


def decoded(codec: JSON | MessagePack, kind: Any, message: Message) -> Any:
    return codec.decoder(kind, None)(message)


@pytest.mark.parametrize("codec", [JSON(), MessagePack()], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    "value", [Order(1, "x"), Item(1), Model(id=1), {"a": [1, None]}, [1, 2], "x", 5], ids=str
)
def test_what_is_encoded_can_be_decoded(codec: JSON | MessagePack, value: object) -> None:
    assert decoded(codec, type(value), encoded(codec, value)) == value


@pytest.mark.parametrize("codec", [JSON(), MessagePack()], ids=["json", "msgpack"])
def test_what_cannot_be_encoded_is_a_type_error(codec: JSON | MessagePack) -> None:
    with pytest.raises(TypeError):
        encoded(codec, object())


@pytest.mark.parametrize("codec", [JSON(), MessagePack()], ids=["json", "msgpack"])
def test_models_are_encoded_wherever_they_are(codec: JSON | MessagePack) -> None:
    assert decoded(codec, list[Model], encoded(codec, [Model(id=1)])) == [Model(id=1)]
    assert decoded(codec, dict, encoded(codec, {"a": {"b": Model(id=1)}})) == {"a": {"b": {"id": 1}}}
