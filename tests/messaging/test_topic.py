"""A topic's contract is one frozen value, and what cannot be is refused when it is made."""

import copy
import enum
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, NewType, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pydantic
import pytest

from things_kit import ConfigError, Message, Topic
from things_kit.codecs import JSON, Avro, MessagePack


class Order(msgspec.Struct):
    id: str
    total: float = 0.0


class Special(Order):
    note: str = ""


class Whatever(msgspec.Struct):
    total: Any


class Created(msgspec.Struct):
    id: str


class Cancelled(msgspec.Struct):
    id: str


class Model(pydantic.BaseModel):
    id: int
    flag: bool = False


class Values(TypedDict):
    id: str


class Optional(TypedDict, total=False):
    id: str


OrderId = NewType("OrderId", str)
SEVEN = UUID(int=7)
NEW = OrderId("n")


@dataclass
class Keyed:
    text: str = "grün"
    raw: bytes = b"\xff"
    number: int = -5
    identity: UUID = SEVEN
    none: str | None = None
    new: OrderId = NEW
    annotated: Annotated[int, "described"] = 3
    ratio: float = 0.5
    flag: bool = True
    anything: Any = "any"

    @property
    def derived(self) -> str:
        return "derived"

    @property
    def worse(self) -> float:
        return 0.5


KINDS: dict[str, type[Created | Cancelled]] = {"order.created": Created, "order.cancelled": Cancelled}


def make(*arguments: Any, **fields: Any) -> Topic[Any]:
    topic: Any = Topic
    made: Topic[Any] = topic(*arguments, **fields)
    return made


def test_a_message_has_the_payload_the_content_type_and_nothing_else() -> None:
    assert Topic("orders", Order).message(Order("o-1", 5.0)) == Message(
        "orders", b'{"id":"o-1","total":5.0}', headers={"content-type": "application/json"}
    )


def test_a_message_has_the_headers_of_its_topic_and_its_own() -> None:
    topic = Topic("orders", Order, headers={"source": "shop", "kind": "a"}, codec=MessagePack())
    time = datetime(2026, 1, 1, tzinfo=UTC)
    message = topic.message(Order("o-1"), headers={"kind": "b"}, id="i", timestamp=time)
    assert message.headers == {"content-type": "application/msgpack", "source": "shop", "kind": "b"}
    assert (message.id, message.timestamp) == ("i", time)


def test_messages_are_those_that_message_makes() -> None:
    payloads = [Order("a", 1.0), Order("b", 2.0)]
    for topic in (Topic("t", Order), Topic("t", Order, key="id", headers={"a": "b"}, version=1)):
        assert topic.messages(iter(payloads)) == [topic.message(each) for each in payloads]
    shop = Topic[Created | Cancelled]("shop", KINDS, by="type", key="id")
    events: list[Created | Cancelled] = [Created("a"), Cancelled("b")]
    assert shop.messages(events) == [shop.message(each) for each in events]
    text = Topic("text", str)
    assert text.messages(["a", "ü"]) == [text.message("a"), text.message("ü")]


@pytest.mark.parametrize(
    "change",
    [
        lambda headers: headers.update(more=""),
        lambda headers: headers.setdefault("more", ""),
        lambda headers: headers.pop("content-type"),
        lambda headers: headers.popitem(),
        lambda headers: headers.clear(),
        lambda headers: headers.__setitem__("more", ""),
        lambda headers: headers.__delitem__("content-type"),
        lambda headers: headers.__ior__({"more": ""}),
    ],
)
def test_nobody_changes_the_headers_that_messages_of_a_topic_share(change: Callable[[Any], object]) -> None:
    topic = Topic("orders", Order)
    (message, _) = topic.messages([Order("a"), Order("b")])
    for each in (message, topic.message(Order("a"))):
        with pytest.raises(TypeError, match=r"cannot be changed: message\.replace"):
            change(each.headers)
    assert topic.message(Order("c")).headers == {"content-type": "application/json"}


def test_a_copy_of_shared_headers_is_a_plain_dict() -> None:
    (message,) = Topic("orders", Order).messages([Order("a")])
    copies: list[Any] = [copy.copy(message.headers), copy.deepcopy(message).headers, {**message.headers}]
    copies += [pickle.loads(pickle.dumps(message)).headers, dict(message.headers)]
    for each in copies:
        assert type(each) is dict
        assert each == message.headers
    assert msgspec.json.encode(message.headers) == b'{"content-type":"application/json"}'


def test_the_type_of_several_is_written_to_the_header() -> None:
    shop = Topic[Created | Cancelled]("shop", KINDS, by="type", key="id")
    assert [m.headers["type"] for m in shop.messages([Created("a"), Cancelled("b")])] == list(KINDS)
    assert shop.message(Cancelled("b")).key == b"b"


@pytest.mark.parametrize("payload", [Created("x"), {"id": "x"}, None, "x", Special])
def test_a_payload_of_another_type_is_refused(payload: Any) -> None:
    with pytest.raises(TypeError, match=r"the topic 'orders' carries Order, not \w+"):
        Topic("orders", Order).message(payload)
    with pytest.raises(TypeError, match=r"the topic 'orders' carries Order, not \w+"):
        Topic("orders", Order).messages([payload])


def test_of_several_types_the_exact_class_counts() -> None:
    class Later(Created):
        pass

    shop = Topic[Created | Cancelled]("shop", KINDS, by="type")
    with pytest.raises(TypeError, match="the topic 'shop' carries Created or Cancelled, not Later"):
        shop.message(Later("x"))
    assert Topic("orders", Order).message(Special("x")).value == b'{"id":"x","total":0.0,"note":""}'


# --- keys


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("text", "grün".encode()),
        ("raw", b"\xff"),
        ("number", b"-5"),
        ("identity", b"00000000-0000-0000-0000-000000000007"),
        ("none", None),
        ("new", b"n"),
        ("annotated", b"3"),
        ("anything", b"any"),
        ("derived", b"derived"),
        pytest.param(lambda payload: payload.text * 2, "grüngrün".encode(), id="function"),
    ],
    ids=str,
)
def test_a_key_is_made_of_an_attribute_or_by_a_function(key: Any, expected: bytes | None) -> None:
    topic = Topic("t", Keyed, key=key)
    assert topic.message(Keyed()).key == expected
    assert topic.messages([Keyed()])[0].key == expected


def test_a_key_may_be_given_with_the_message_or_be_none() -> None:
    topic = Topic("orders", Order, key="id")
    assert topic.message(Order("a"), key=7).key == b"7"
    assert topic.message(Order("a"), key=None).key is None


def test_a_key_of_plain_values_is_an_item() -> None:
    assert Topic("t", Values, key="id").message({"id": "a"}).key == b"a"
    assert Topic("t", dict[str, Any], key="id").message({"id": "a"}).key == b"a"


@pytest.mark.parametrize(
    ("kind", "key", "payload"),
    [
        (dict[str, Any], "id", {}),
        (Optional, "id", {}),
        (Any, "id", 5),
        (Any, "id", {}),
        (Any, "real.real", 5),
    ],
)
def test_a_payload_that_lacks_what_its_key_is_made_of_is_a_type_error(
    kind: Any, key: str, payload: Any
) -> None:
    topic = make("t", kind, key=key)
    with pytest.raises(
        TypeError, match=rf"a payload has no '{key}', which the key of the topic 't' is made of"
    ):
        topic.message(payload)
    with pytest.raises(TypeError, match=rf"a payload has no '{key}', which"):
        topic.messages([payload])


def test_what_a_key_function_raises_is_its_own() -> None:
    topic = Topic("t", dict[str, str], key=lambda payload: payload["missing"])
    with pytest.raises(KeyError, match="missing"):
        topic.message({})
    with pytest.raises(KeyError, match="missing"):
        topic.messages([{}])


def test_keys_of_many_are_those_of_each() -> None:
    topic = make("t", Any, key="key")
    payloads: list[Any] = [{"key": each} for each in ("a", b"b", 3, None)]
    assert [each.key for each in topic.messages(payloads)] == [b"a", b"b", b"3", None]


def _bad(payload: Order) -> float:
    return payload.total


@pytest.mark.parametrize(
    ("kind", "key", "why"),
    [
        (Order, "missing", "has the key 'missing', which Order has not"),
        (Order, "total", "'total' of Order, the key of the topic 't', is float"),
        (Keyed, "flag", "is bool; a key is a str, bytes, int, UUID or None"),
        (Keyed, "worse", "is float"),
        (Values, "missing", "which Values has not"),
        (Model, "flag", "is bool"),
        (Model, "name", "which Model has not"),
        (Order, _bad, "what the key function of the topic 't' returns is float"),
        (Order, 5, "an attribute's name or a function of the payload, not 5"),
    ],
)
def test_a_key_that_cannot_be_is_refused_when_the_topic_is_made(kind: Any, key: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        Topic("t", kind, key=key)


def test_a_key_that_one_of_several_types_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="the key 'total', which Created has not"):
        make("t", {"a": Whatever, "b": Created}, by="type", key="total")


def test_a_key_that_turns_out_to_be_none_is_a_type_error() -> None:
    topic: Topic[Keyed] = Topic("t", Keyed, key="anything")
    with pytest.raises(TypeError, match="a key is a str, bytes, int, UUID or None, not float"):
        topic.message(Keyed(anything=0.5))


# --- what cannot be


class Unknown:
    pass


ItemT = TypeVar("ItemT")


class Page(msgspec.Struct, Generic[ItemT]):
    items: list[ItemT]


@pytest.mark.parametrize(
    ("arguments", "fields", "why"),
    [
        (("", Order), {}, "a topic must have a name"),
        ((5, Order), {}, "a topic must have a name"),
        (("t", None), {}, "needs the type of its payloads"),
        (("t", Order("x")), {}, "cannot carry"),
        (("t", Unknown), {}, "cannot carry Unknown as application/json"),
        (("t", list[Unknown]), {}, "cannot carry"),
        (("t", Created | Cancelled), {}, "cannot carry"),
        (("t", Order), {"by": "type"}, "needs a mapping"),
        (("t", {}), {"by": "type"}, "has no types"),
        (("t", {"a": Order, "b": Order}), {"by": "type"}, "maps both 'a' and 'b' to Order"),
        (("t", {"a": Values}), {"by": "type"}, "cannot be told apart at run time"),
        (("t", {"a": list[Order]}), {"by": "type"}, "cannot be told apart at run time"),
        (("t", {"a": Page[Order]}), {"by": "type"}, "cannot be told apart at run time"),
        (("t", {"a": Any}), {"by": "type"}, "cannot be told apart at run time"),
        (("t", {5: Order}), {"by": "type"}, "which 5 is not"),
        (("t", Order), {"headers": {5: "x"}}, "the topic 't' sets the header 5 to 'x': both are text"),
        (("t", Order), {"headers": {"n": 5}}, "sets the header 'n' to 5: both are text"),
        (("t", Order), {"headers": {"tk-n": "5"}}, "sets the header 'tk-n', which is for drivers"),
        (("t", {"a": Order}), {"by": ""}, "by= is a header's name"),
        (("t", Order), {"headers": {"Content-Type": "x"}}, "sets the header 'Content-Type', which its contract writes"),
        (("t", Order), {"headers": {"schema-version": "1"}}, "sets the header 'schema-version'"),
        (("t", {"a": Order}), {"by": "kind", "headers": {"kind": "x"}}, "sets the header 'kind'"),
        (("t", Order), {"codec": MessagePack}, "is no Codec but .* pass an instance"),
        (("t", Order), {"codec": "json"}, "is no Codec but 'json'"),
        (("t", bytes), {"codec": JSON()}, "is raw: its payloads are the bytes"),
        (("t", str), {"version": 1}, "is raw: it has no versions"),
        (("t", Order), {"upcast": {1: dict}}, "has upcast= without version="),
        (("t", Order), {"version": 0}, "is a whole number from 1"),
        (("t", Order), {"version": True}, "is a whole number from 1"),
        (("t", Order), {"version": 3, "upcast": {2: dict}}, "has no upcaster from 1"),
        (("t", Order), {"version": 2}, "has no upcaster from 1"),
        (("t", Order), {"version": 2, "upcast": {1: dict, 2: dict}}, "has 2, which is no version from 1 to 1"),
        (("t", Order), {"version": 2, "upcast": {1: "x"}}, "is no function but 'x'"),
        (("t", {"a": Order}), {"by": "type", "version": 2, "upcast": {1: dict}}, "has no type 1"),
        (("t", {"a": Order}), {"by": "type", "version": 2, "upcast": {"b": {1: dict}}}, "has no type 'b'"),
        (("t", {"a": Order}), {"by": "type", "version": 3, "upcast": {"a": {1: dict}}}, "has no upcaster from 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_the_topic_is_made(
    arguments: tuple[Any, ...], fields: Mapping[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        make(*arguments, **fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("headers", [{"CONTENT-TYPE": "x"}, {"type": "x"}, {"Schema-Version": "x"}])
def test_a_message_may_not_say_what_the_contract_says(headers: Mapping[str, str]) -> None:
    with pytest.raises(ConfigError, match="which its contract writes"):
        make("t", KINDS, by="type").message(Created("x"), headers=headers)


def test_a_type_that_was_not_changed_needs_no_upcasters() -> None:
    shop = make("t", KINDS, by="type", version=2, upcast={"order.created": {1: dict}})
    assert shop.message(Created("a")).headers["schema-version"] == "2"


# --- the value


@pytest.mark.parametrize("codec", [JSON(), MessagePack(), Avro()])
def test_a_type_that_is_nested_without_end_is_refused_in_a_sentence(codec: Any) -> None:
    deep: Any = int
    for _ in range(5000):
        deep = list[deep]
    with pytest.raises(
        ConfigError, match=r"cannot carry .* as .* its types are nested too deeply"
    ) as refused:
        Topic("t", deep, codec=codec)
    assert len(str(refused.value)) < 400


def test_a_topic_is_frozen() -> None:
    topic = Topic("orders", Order)
    with pytest.raises(AttributeError, match="a Topic is frozen"):
        topic.name = "x"
    with pytest.raises(AttributeError, match="a Topic is frozen"):
        del topic.name
    with pytest.raises(TypeError):
        topic.headers["a"] = "b"  # type: ignore[index] # that is what is tested


def test_topics_are_values() -> None:
    assert Topic("orders", Order, key="id") == Topic("orders", Order, key="id")
    assert Topic("orders", Order) != Topic("orders", Order, codec=MessagePack())
    assert Topic("orders", Order) != "orders"
    assert len({Topic("orders", Order), Topic("orders", Order), Topic("orders", Created)}) == 2
    topic = Topic("orders", Order)
    assert copy.copy(topic) is copy.deepcopy(topic) is topic
    assert repr(topic) == "Topic('orders', Order)"


@pytest.mark.parametrize(
    "topic",
    [
        make("t", Order, key="id", headers={"a": "b"}, version=2, upcast={1: dict}, accept_newer=True),
        make("t", KINDS, by="kind", codec=MessagePack(), version=2, upcast={"order.created": {1: dict}}),
        make("t", bytes),
    ],
    ids=str,
)
def test_a_renamed_topic_has_the_same_contract(topic: Topic[Any]) -> None:
    assert topic.renamed("u") != topic
    assert topic.renamed("u").name == "u"
    assert topic.renamed("u").renamed("t") == topic


def test_raw_topics_carry_bytes_and_text_as_they_are() -> None:
    assert Topic("t", bytes).message(b"\xff").headers == {"content-type": "application/octet-stream"}
    assert Topic("t", bytes).message(b"\xff").value == b"\xff"
    assert Topic("t", str).message("grün").headers == {"content-type": "text/plain; charset=utf-8"}
    assert Topic("t", str).message("grün").value == "grün".encode()
    assert Topic("t", str, key=lambda text: text[:1]).message("grün").key == b"g"
    with pytest.raises(TypeError, match="the topic 't' carries bytes, not str"):
        Topic("t", bytes).message("x")  # type: ignore[arg-type] # that is what is tested


class Status(enum.Enum):
    NEW = "new"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (int, 5),
        (float, 5),
        (list[Order], [Order("x")]),
        (Order | None, None),
        (Annotated[Order, "x"], Order("x")),
        (OrderId, OrderId("x")),
        (Status, Status.NEW),
        (dict, {}),
    ],
    ids=str,
)
def test_the_outer_class_of_a_payload_is_checked_whatever_is_around_its_type(kind: Any, payload: Any) -> None:
    topic: Topic[Any] = Topic("t", kind)
    assert topic.message(payload)
    with pytest.raises(TypeError, match="the topic 't' carries"):
        topic.message(object())


def test_a_topic_of_forward_references_that_never_come_is_refused() -> None:
    class Broken(msgspec.Struct):
        other: "Nowhere"  # type: ignore[name-defined] # noqa: F821 - that is what is tested

    with pytest.raises(ConfigError, match="Nowhere"):
        Topic("t", Broken)


def test_functions_of_a_contract_are_part_of_the_value() -> None:
    function: Callable[[Order], str] = lambda order: order.id  # noqa: E731 - one function, twice
    assert Topic("t", Order, key=function) == Topic("t", Order, key=function)
