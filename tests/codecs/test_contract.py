"""What a handler gets of a topic whose contract is known, and which handlers are refused."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

from things_kit import ConfigError, DecodeError, Message, Topic, UnroutableError
from things_kit.codecs import JSON, MessagePack
from things_kit.codecs.contract import contract_decoder


class Base(msgspec.Struct):
    id: str


class Order(Base):
    total: int = 0
    currency: str = "EUR"


class Created(Base):
    pass


class Cancelled(Base):
    reason: str = ""


class Other(msgspec.Struct):
    id: str


class Typed(TypedDict):
    id: str


class Model(pydantic.BaseModel):
    id: str
    currency: str


orders = Topic("orders", Order)
shop = Topic[Created | Cancelled]("shop", {"order.created": Created, "order.cancelled": Cancelled}, by="type")


def decode(topic: Topic[Any], wanted: Any, message: Message) -> Any:
    return contract_decoder(topic, wanted, "the handler h")(message)


def message(value: bytes, topic: str = "orders", **headers: str) -> Message:
    return Message(topic, value, headers={name.replace("_", "-"): text for name, text in headers.items()})


@pytest.mark.parametrize("wanted", [Order, Base, Order | Other, object, Any, Order | None], ids=str)
def test_a_handler_of_the_type_or_a_wider_one_gets_the_payload(wanted: Any) -> None:
    assert decode(orders, wanted, orders.message(Order("a", 5))) == Order("a", 5)


@pytest.mark.parametrize("wanted", [Created | Cancelled, Base, object, Created | Cancelled | Order], ids=str)
def test_the_header_says_which_of_several_types_it_is(wanted: Any) -> None:
    assert decode(shop, wanted, shop.message(Created("a"))) == Created("a")
    assert decode(shop, wanted, shop.message(Cancelled("a", "b"))) == Cancelled("a", "b")


@pytest.mark.parametrize(
    ("topic", "wanted", "why"),
    [
        (orders, Other, "the handler h takes Other, but the topic 'orders' carries Order"),
        (orders, list[Order], "takes list[test_contract.Order], but the topic 'orders' carries Order"),
        (orders, Typed, "takes Typed, but the topic 'orders' carries Order"),
        (shop, Created, "takes Created, but the topic 'shop' carries Created | Cancelled"),
        (Topic("t", list[Order]), list[Other], "carries list["),
        (Topic("t", bytes), Order, "takes Order, but the topic 't' carries bytes"),
    ],
)
def test_a_handler_of_another_type_is_refused_by_a_sentence_with_both(
    topic: Topic[Any], wanted: Any, why: str
) -> None:
    with pytest.raises(
        ConfigError, match=re.escape(why.replace("test_contract", "tests.codecs.test_contract"))
    ):
        contract_decoder(topic, wanted, "the handler h")


@pytest.mark.parametrize("topic", [orders, orders.renamed("x"), Topic("orders", Order, codec=MessagePack())])
def test_every_handler_may_take_what_every_message_has(topic: Topic[Order]) -> None:
    sent = topic.message(Order("a", 5))
    assert decode(topic, bytes, sent) == sent.value
    assert decode(topic, dict, sent) == {"id": "a", "total": 5, "currency": "EUR"}
    assert decode(topic, dict[str, Any], sent) == {"id": "a", "total": 5, "currency": "EUR"}
    assert decode(topic, Mapping, sent) == {"id": "a", "total": 5, "currency": "EUR"}


def test_bytes_and_text_are_the_value_whatever_the_content_type() -> None:
    sent = message(b'{"id": 1}', content_type="no/such")
    assert decode(orders, bytes, sent) == b'{"id": 1}'
    assert decode(orders, str, sent) == '{"id": 1}'
    with pytest.raises(DecodeError, match="the value is not UTF-8 text"):
        decode(orders, str, message(b"\xff"))


@pytest.mark.parametrize("kind", [bytes, str])
@pytest.mark.parametrize("wanted", [object, Any, bytes | str])
def test_raw_topics_are_decoded_to_what_they_carry(kind: Any, wanted: Any) -> None:
    topic: Topic[Any] = Topic("t", kind)
    payload = "grün" if kind is str else b"\xff"
    assert decode(topic, wanted, topic.message(payload)) == payload


def test_the_content_type_of_the_message_goes_before_the_codec_of_the_topic() -> None:
    packed = Topic("orders", Order, codec=MessagePack())
    assert decode(orders, Order, packed.message(Order("a"))) == Order("a")
    assert decode(packed, Order, orders.message(Order("a"))) == Order("a")
    assert decode(
        packed, Order, message(b'{"id":"a"}', Content_Type="Application/JSON; charset=utf-8")
    ) == Order("a")
    assert decode(packed, Order, message(b'{"id":"a"}', content_type="application/vnd.x+json")) == Order("a")


def test_without_a_content_type_the_codec_of_the_topic_decodes() -> None:
    packed = Topic("orders", Order, codec=MessagePack())
    assert decode(packed, Order, message(packed.message(Order("a")).value)) == Order("a")
    assert decode(orders, Order, message(b'{"id":"a"}')) == Order("a")


@pytest.mark.parametrize(
    "sent",
    [
        message(b"{}"),
        message(b"["),
        message(b""),
        message(b'{"id": 5}'),
        message(b"\xff" * 10, content_type="application/msgpack"),
        message(b"{}", content_type="no/such"),
    ],
    ids=str,
)
def test_what_cannot_be_decoded_is_a_decode_error(sent: Message) -> None:
    with pytest.raises(DecodeError):
        decode(orders, Order, sent)


def test_plain_values_that_are_no_object_are_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="the value is no object but list"):
        decode(orders, dict, message(b"[]"))


@pytest.mark.parametrize("headers", [{}, {"type": "order.changed"}, {"Type": "order.created"}])
@pytest.mark.parametrize("wanted", [Created | Cancelled, dict])
def test_an_unknown_or_missing_type_is_unroutable(wanted: Any, headers: dict[str, str]) -> None:
    with pytest.raises(UnroutableError):
        decode(shop, wanted, Message("shop", b'{"id": "a"}', headers=headers))


# --- versions


def add_currency(old: dict[str, Any]) -> dict[str, Any]:
    return {**old, "currency": "DEM"}


def rename(old: dict[str, Any]) -> dict[str, Any]:
    return {"id": old["name"], "total": old["total"], "currency": old["currency"]}


third = Topic("orders", Order, version=3, upcast={1: add_currency, 2: rename})


@pytest.mark.parametrize(
    ("sent", "currency"),
    [
        (message(b'{"name": "a", "total": 5}'), "DEM"),
        (message(b'{"name": "a", "total": 5}', schema_version="1"), "DEM"),
        (message(b'{"name": "a", "total": 5, "currency": "FRF"}', Schema_Version="2"), "FRF"),
        (message(b'{"id": "a", "total": 5, "currency": "USD"}', schema_version="3"), "USD"),
        (
            message(
                msgspec.msgpack.encode({"name": "a", "total": 5}),
                content_type="application/msgpack",
                schema_version="1",
            ),
            "DEM",
        ),
    ],
    ids=str,
)
def test_an_older_message_is_brought_up_to_date(sent: Message, currency: str) -> None:
    assert decode(third, Order, sent) == Order("a", 5, currency)
    assert decode(third, dict, sent) == {"id": "a", "total": 5, "currency": currency}


def test_what_is_written_says_its_version_and_is_read_as_it_is() -> None:
    sent = third.message(Order("a", 5, "USD"))
    assert sent.headers["schema-version"] == "3"
    assert decode(third, Order, sent) == Order("a", 5, "USD")


@pytest.mark.parametrize("version", ["x", "", "0", "-1", "1.5", "٣", "9" * 5000])
def test_a_version_that_is_none_is_a_decode_error(version: str) -> None:
    with pytest.raises(DecodeError):
        decode(third, Order, message(b"{}", schema_version=version))


def test_a_newer_version_is_a_decode_error_unless_it_is_accepted() -> None:
    sent = message(b'{"id": "a", "new": 1}', schema_version="4")
    with pytest.raises(
        DecodeError, match="is of version 4, newer than this program's 3; accept_newer=True takes it"
    ):
        decode(third, Order, sent)
    accepts = Topic("orders", Order, version=3, upcast=third.upcasters[None], accept_newer=True)
    assert decode(accepts, Order, sent) == Order("a")


def test_an_upcaster_that_raises_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match=r"the upcaster from version 2 failed: KeyError\('name'\)"):
        decode(third, Order, message(b'{"total": 1}'))


def test_what_an_upcaster_makes_is_checked() -> None:
    topic = Topic("orders", Order, version=2, upcast={1: lambda old: {"total": "x"}})
    with pytest.raises(DecodeError, match="the value is not Order"):
        decode(topic, Order, message(b"{}"))


def test_versions_of_several_types_are_those_of_each() -> None:
    topic = Topic[Created | Cancelled](
        "shop",
        {"order.created": Created, "order.cancelled": Cancelled},
        by="type",
        version=2,
        upcast={"order.created": {1: lambda old: {"id": old["name"]}}},
    )
    assert decode(topic, Base, message(b'{"name": "a"}', type="order.created")) == Created("a")
    assert decode(topic, Base, message(b'{"id": "a"}', type="order.cancelled")) == Cancelled("a")


def test_models_are_upcast_too() -> None:
    topic = Topic("orders", Model, version=2, upcast={1: add_currency})
    assert decode(topic, Model, message(b'{"id": "a"}')) == Model(id="a", currency="DEM")
    assert decode(topic, Model, topic.message(Model(id="a", currency="X"))) == Model(id="a", currency="X")


class Strict(pydantic.BaseModel, strict=True):
    at: datetime
    counts: dict[int, int]


class Counted(msgspec.Struct):
    at: datetime
    counts: dict[int, int]


@pytest.mark.parametrize("kind", [Strict, Counted])
@pytest.mark.parametrize("codec", [JSON(), MessagePack()])
def test_what_json_says_as_text_is_upcast_too(kind: Any, codec: Any) -> None:
    topic: Topic[Any] = Topic("t", kind, version=2, codec=codec, upcast={1: lambda old: old})
    payload = kind(at=datetime(2026, 1, 2, tzinfo=UTC), counts={1: 2})
    sent = topic.message(payload)
    assert decode(topic, kind, sent.replace(headers={**sent.headers, "schema-version": "1"})) == payload


def test_without_a_version_the_header_is_not_read() -> None:
    assert decode(orders, Order, message(b'{"id": "a"}', schema_version="x")) == Order("a")
    assert JSON().content_type == orders.content_type
