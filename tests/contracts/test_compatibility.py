"""No verdict that a change is compatible is wrong: types and their changes are made up, and what really decodes is looked at."""

import asyncio
import enum
import json
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta, inspect

from things_kit import ConfigError, DecodeError, Message, Topic
from things_kit.codecs import JSON, Avro, MemoryRegistry, MessagePack, Protobuf
from things_kit.codecs.contract import contract_decoder
from things_kit.contracts.asyncapi import asyncapi
from things_kit.contracts.diff import diff

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def document(topic: Topic[Any]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(asyncapi("t", topics=[topic])))
    return made


def directions(old: Topic[Any], new: Topic[Any]) -> set[str | None]:
    return {finding.direction for finding in diff(document(old), document(new))}


# --- types


class Small(enum.Enum):
    A = "a"
    B = "b"


class Large(enum.Enum):
    A = "a"
    B = "b"
    C = "c"


class Numbers(enum.IntEnum):
    ONE = 1
    TWO = 2


SCALARS: list[Any] = [
    int, float, str, bool, type(None), bytes, datetime, date, timedelta, UUID, Decimal, Small, Large, Numbers, Any,
    Literal["a", "b"], Literal["a"], Literal[1, 2], Literal["a", 1],
    Annotated[int, Meta(ge=0)], Annotated[int, Meta(gt=0, lt=4)], Annotated[int, Meta(ge=1, le=3)],
    Annotated[float, Meta(le=2.5)], Annotated[int, Meta(multiple_of=2)], Annotated[int, Meta(multiple_of=4)],
    Annotated[str, Meta(max_length=1)], Annotated[str, Meta(min_length=1)], Annotated[str, Meta(pattern="^a")],
    Annotated[list[int], Meta(max_length=1)], Annotated[list[int], Meta(min_length=1)],
]  # fmt: skip
# Unions are made of these, so that all can be told apart: msgspec 0.22 refuses the others, and lets go of their
# constraints once too often then, which crashes it in the end
WHOLE: list[Any] = [int, float, bool, Literal[1, 2], Numbers, Annotated[int, Meta(ge=0)]]
TEXT: list[Any] = [str, Literal["a", "b"], Small, Large, datetime, UUID, Annotated[str, Meta(max_length=1)]]
NAMES = ["a", "b", "c"]


def struct(name: str, fields: list[Any], **options: Any) -> Any:
    fields = sorted(fields, key=len)
    return msgspec.defstruct(name, fields, kw_only=True, **options)


@st.composite
def structs(draw: st.DrawFn, inner: Any, name: str = "T", tag: bool = False) -> Any:
    fields: list[Any] = []
    for field in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3)):
        kind = draw(inner)
        how = draw(st.sampled_from(["required", "optional", "default"]))
        if how == "required":
            fields.append((field, kind))
        elif how == "optional":
            fields.append((field, kind | None, None))
        else:
            fields.append((field, int | str, draw(st.sampled_from([0, "a"]))))
    return struct(name, fields, forbid_unknown_fields=draw(st.booleans()), tag=tag or None)


@st.composite
def tagged(draw: Any, inner: Any) -> Any:
    names = draw(st.lists(st.sampled_from(["X", "Y", "Z"]), unique=True, min_size=1, max_size=2))
    kinds = [draw(structs(inner, name, tag=True)) for name in names]
    return kinds[0] if len(kinds) == 1 else kinds[0] | kinds[1]


def containers(inner: Any) -> Any:
    return st.one_of(
        inner.map(lambda kind: list[kind]),  # type: ignore[valid-type] # made at run time
        inner.map(lambda kind: dict[str, kind]),  # type: ignore[valid-type]
        inner.map(lambda kind: tuple[kind, int]),  # type: ignore[valid-type]
        inner.map(lambda kind: tuple[kind, ...]),  # type: ignore[valid-type]
        inner.map(lambda kind: kind | None),
        st.tuples(st.sampled_from(WHOLE), st.sampled_from(TEXT)).map(lambda kinds: kinds[0] | kinds[1]),
        st.tuples(st.sampled_from(TEXT), inner).map(lambda two: two[0] | list.__class_getitem__(two[1])),
        st.tuples(st.sampled_from(WHOLE), inner).map(
            lambda two: two[0] | dict.__class_getitem__((str, two[1]))
        ),
        st.tuples(st.sampled_from([*WHOLE, *TEXT]), tagged(inner)).map(lambda kinds: kinds[0] | kinds[1]),
        structs(inner),
        tagged(inner),
    )


kinds = st.recursive(st.sampled_from(SCALARS), containers, max_leaves=4)


@st.composite
def changed(draw: Any, kind: Any) -> Any:
    """A change of a Struct as people make them: a field more or less, another type, name or default of one."""
    raw = {field.name: field.type for field in msgspec.structs.fields(kind)}
    fields: list[list[Any]] = [
        [field.name, field.type, *([] if field.required else [field.default])]
        for field in msgspec.structs.fields(kind)
    ]
    how = draw(st.sampled_from(["more", "less", "type", "name", "default", "none", "strict"]))
    strict = kind.__struct_config__.forbid_unknown_fields
    if how == "more" or not fields:
        free = next(name for name in [*NAMES, "d"] if name not in raw)
        default = draw(st.sampled_from([[], [None]]))
        fields.append([free, draw(kinds) if not default else draw(kinds) | None, *default])
    elif how == "strict":
        strict = not strict
    else:
        place = draw(st.integers(0, len(fields) - 1))
        name, was, *default = fields[place]
        changes: dict[str, list[Any]] = {
            "less": [], "type": [[name, draw(kinds)]], "name": [["e", was, *default]],
            "default": [[name, was] if default else [name, was | None, None]], "none": [fields[place]],
        }  # fmt: skip
        fields[place : place + 1] = changes[how]
    return struct("T", [tuple(field) for field in fields], forbid_unknown_fields=strict)


@st.composite
def pairs(draw: Any) -> tuple[Any, Any]:
    old = draw(structs(kinds))
    new = draw(st.one_of(changed(old), structs(kinds)))
    return (old, new) if draw(st.booleans()) else (new, old)


# --- payloads

_VALUES: dict[Any, st.SearchStrategy[Any]] = {
    inspect.IntType: st.integers(-5, 5),
    inspect.FloatType: st.sampled_from([0.5, -1.25, 3.0, 2.5]),
    inspect.StrType: st.sampled_from(["", "a", "b", "zz", "ab"]),
    inspect.BoolType: st.booleans(),
    inspect.NoneType: st.none(),
    inspect.BytesType: st.sampled_from([b"", b"a"]),
    inspect.DateTimeType: st.just(datetime.fromisoformat("2026-01-02T03:04:05+00:00")),
    inspect.DateType: st.just(date(2026, 1, 2)),
    inspect.TimeDeltaType: st.just(timedelta(seconds=5)),
    inspect.UUIDType: st.just(UUID(int=5)),
    inspect.DecimalType: st.just(Decimal("1.5")),
    inspect.AnyType: st.sampled_from([1, "a", None, {"a": 1}]),
}


def payloads(kind: Any) -> st.SearchStrategy[Any]:
    """What may be written by a type."""
    decoder: Any = msgspec.json.Decoder(kind)

    def takes(payload: Any) -> bool:
        try:
            decoder.decode(msgspec.json.encode(payload))
        except msgspec.ValidationError:
            return False
        return True

    return _payloads(inspect.type_info(kind)).filter(takes)


def _payloads(info: Any) -> st.SearchStrategy[Any]:
    found: st.SearchStrategy[Any] | None = _VALUES.get(type(info))
    match info:
        case inspect.Metadata():
            found = _payloads(info.type)
        case inspect.EnumType():
            found = st.sampled_from([each.value for each in info.cls])
        case inspect.LiteralType():
            found = st.sampled_from(list(info.values))
        case inspect.UnionType():
            found = st.one_of(*map(_payloads, info.types))
        case inspect.ListType() | inspect.VarTupleType():
            found = st.lists(_payloads(info.item_type), max_size=2)
        case inspect.TupleType():
            found = st.tuples(*map(_payloads, info.item_types)).map(list)
        case inspect.DictType():
            found = st.dictionaries(st.sampled_from("abx"), _payloads(info.value_type), max_size=2)
        case inspect.StructType():
            tag = {} if info.tag_field is None else {info.tag_field: st.just(info.tag)}
            required = {each.encode_name: _payloads(each.type) for each in info.fields if each.required}
            optional = {each.encode_name: _payloads(each.type) for each in info.fields if not each.required}
            found = st.fixed_dictionaries({**tag, **required}, optional=optional)
    assert found is not None, info
    return found


# --- the verdict, and what really decodes


@QUICK
@given(st.data())
def test_no_verdict_that_a_change_is_compatible_is_wrong(data: Any) -> None:
    old, new = data.draw(pairs())
    broken = directions(Topic("t", old), Topic("t", new))
    for direction, writes, reads in (("backward", old, new), ("forward", new, old)):
        if direction not in broken:
            payload = data.draw(payloads(writes))
            msgspec.json.decode(msgspec.json.encode(payload), type=reads)


@QUICK
@given(kinds.flatmap(lambda kind: structs(st.just(kind))))
def test_what_did_not_change_is_compatible(kind: Any) -> None:
    assert directions(Topic("t", kind), Topic("t", kind)) == set()


# --- Avro


@st.composite
def avro_kinds(draw: Any) -> Any:
    """What Avro takes of these: all names are different there, and a union has each type once."""
    return draw(st.sampled_from([
        int, float, str, bool, bytes, datetime, date, UUID, Decimal, Small, Large, Literal["a", "b"],
        Annotated[int, Meta(ge=0)], list[int], list[str | None], dict[str, int], Small | None, int | str, int | float,
        struct("N", [("x", int)]), struct("N", [("x", int), ("y", int, 0)]), struct("N", [("y", str | None, None)]),
        struct("M", [("x", int)]), list[struct("N", [("x", float)])],  # type: ignore[misc] # made at run time
        struct("P", [("n", int)], tag=True) | struct("Q", [("n", int)], tag=True) | None,
        struct("P", [("n", float)], tag=True) | None,
    ]))  # fmt: skip


def avro_pairs() -> Any:
    def both(draw: Any) -> Any:
        fields = {name: draw(avro_kinds()) for name in NAMES}
        one, other = dict(fields), dict(fields)
        name = draw(st.sampled_from(NAMES))
        how = draw(st.sampled_from(["more", "type", "default", "name"]))
        if how == "more":
            del one[name]
        elif how == "type":
            other[name] = draw(avro_kinds())
        elif how == "name":
            other["e"] = other.pop(name)
        optional = {name: how in {"default", "more"} and draw(st.booleans()) for name in [*NAMES, "e"]}
        return tuple(
            struct(
                "T",
                [
                    (name, kind | None, None) if optional[name] else (name, kind)
                    for name, kind in each.items()
                ],
            )
            for each in (one, other)
        )

    return st.composite(both)()


def topics_of(kinds: tuple[Any, Any], make: Callable[[], Any]) -> list[Topic[Any]]:
    """Those of the types that the codec takes."""
    found: list[Topic[Any]] = []
    for kind in kinds:
        try:
            found.append(Topic("t", kind, codec=make()))
        except ConfigError:
            return []
    return found


def written(topic: Topic[Any], payload: Any) -> Message:
    kind = topic.kinds[None]
    return topic.message(msgspec.json.decode(msgspec.json.encode(payload), type=kind))


def is_read(topic: Topic[Any], message: Message) -> bool:
    try:
        contract_decoder(topic, topic.kinds[None], "h")(message)
    except DecodeError:
        return False
    return True


@pytest.mark.parametrize("registered", [True, False])
@QUICK
@given(data=st.data())
def test_no_verdict_of_avro_that_a_change_is_compatible_is_wrong(registered: bool, data: Any) -> None:
    kinds = data.draw(avro_pairs())
    registry = MemoryRegistry()
    topics = topics_of(kinds, lambda: Avro(registry=registry) if registered else Avro())
    if not topics:
        return
    old, new = topics
    if registered:
        asyncio.run(prepared(topics))
    broken = directions(old, new)
    for direction, writes, reads in (("backward", old, new), ("forward", new, old)):
        if direction not in broken:
            payload = data.draw(payloads(writes.kinds[None]))
            assert is_read(reads, written(writes, payload)), (document(writes), document(reads), payload)


async def prepared(topics: list[Topic[Any]]) -> None:
    for topic in topics:
        await topic.prepare()


# --- Protobuf

ONE: dict[str, Any] = {
    "int32": -5, "int64": 2**40, "uint32": 5, "uint64": 2**63, "sint32": -5, "sint64": -(2**40), "fixed32": 5, "sfixed32": -5,
    "fixed64": 5, "sfixed64": -5, "bool": True, "string": "text", "bytes": b"\xff\x00", "float": 0.5, "double": 1.5,
    "small": 1, "large": 2, "inner": {1: ("int32", False)}, "other": {1: ("int32", False), 2: ("string", False)},
    "wider": {1: ("int64", False)}, "text": {1: ("string", False)},
}  # fmt: skip
fields = st.dictionaries(
    st.integers(1, 4), st.tuples(st.sampled_from(sorted(ONE)), st.booleans()), min_size=1, max_size=3
)


def generated(fields: dict[int, tuple[str, bool]], oneof: frozenset[int] = frozenset()) -> Any:
    """A class as protoc makes it, of fields by their numbers, some of them in a oneof."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    for name, numbers in (("Small", 2), ("Large", 3)):
        made = file.enum_type.add(name=name)
        for number in range(numbers):
            made.value.add(name=f"{name}{number}", number=number)
    _add_message(file, "T", fields, oneof)
    for name, inner in ONE.items():
        if isinstance(inner, dict):
            _add_message(file, name.title(), inner, frozenset())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.T"))


def _add_message(file: Any, name: str, fields: dict[int, tuple[str, bool]], oneof: frozenset[int]) -> None:
    message = file.message_type.add(name=name)
    if oneof & fields.keys():
        message.oneof_decl.add(name="choice")
    for number, (kind, many) in fields.items():
        field = message.field.add(name=f"f{number}_{kind}", number=number, label=3 if many else 1)
        if kind in {"small", "large"}:
            field.type, field.type_name = field.TYPE_ENUM, f".t.{kind.title()}"
        elif isinstance(ONE[kind], dict):
            field.type, field.type_name = field.TYPE_MESSAGE, f".t.{kind.title()}"
        else:
            field.type = getattr(field, f"TYPE_{kind.upper()}")
        if number in oneof:
            field.oneof_index = 0


def filled(made: Any) -> Any:
    """A message whose fields all have values; of a oneof that is the last."""
    for field in made.DESCRIPTOR.fields:
        kind, many = field.name.partition("_")[2], field.is_repeated
        one = ONE[kind]
        if isinstance(one, dict):
            for each in (
                [getattr(made, field.name).add() for _ in range(2)] if many else [getattr(made, field.name)]
            ):
                filled(each)
                each.SetInParent()
        elif many:
            getattr(made, field.name).extend([one, one])
        else:
            setattr(made, field.name, one)
    return made


def values_of(message: Any) -> dict[int, Any]:
    """By the numbers of fields, all that is in it."""
    found: dict[int, Any] = {}
    for field, value in message.ListFields():
        plain = [*value] if field.is_repeated else value
        if field.message_type is not None:
            plain = [values_of(each) for each in plain] if field.is_repeated else values_of(plain)
        found[field.number] = plain
    return found


def same_as_far_as_known(kind: Any, read: Any, wrote: Any) -> bool:
    """Whether all that was read is what was written, and all that is known was read."""
    known = {field.number: field for field in kind.fields}
    if read.keys() != {number for number in wrote if number in known}:
        return False
    for number, value in read.items():
        theirs, inner = wrote[number], known[number].message_type
        if inner is not None:
            pairs = list(zip(value, theirs, strict=True)) if isinstance(value, list) else [(value, theirs)]
            if not all(same_as_far_as_known(inner, *pair) for pair in pairs):
                return False
        elif _as_bytes(value) != _as_bytes(theirs):
            return False
    return True


def _as_bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_bytes(each) for each in value]
    return value.encode() if isinstance(value, str) else value


@st.composite
def generated_pairs(draw: Any) -> tuple[Any, Any]:
    old = draw(fields)
    new = dict(old)
    how = draw(st.sampled_from(["more", "less", "type", "number", "many", "oneof", "any"]))
    number = draw(st.sampled_from(sorted(old)))
    kind, many = old[number]
    if how in {"less", "number"}:
        del new[number]
    if how in {"more", "number"}:
        new[draw(st.integers(1, 5))] = (kind, many)
    if how == "type":
        new[number] = (draw(st.sampled_from(sorted(ONE))), many)
    if how == "many":
        new[number] = (kind, not many)
    if how == "any":
        new = draw(fields)
    single = frozenset(number for number, (_, many) in new.items() if not many)
    pair = generated(old), generated(new, single if how == "oneof" else frozenset())
    return pair if draw(st.booleans()) else (pair[1], pair[0])


@QUICK
@given(st.data())
def test_no_verdict_of_protobuf_that_a_change_is_compatible_is_wrong(data: Any) -> None:
    old, new = (Topic[Any]("t", kind, codec=Protobuf()) for kind in data.draw(generated_pairs()))
    broken = directions(old, new)
    for direction, writes, reads in (("backward", old, new), ("forward", new, old)):
        if direction not in broken:
            kind: Any = reads.kinds[None]
            message = writes.message(filled(writes.kinds[None]()))
            read = contract_decoder(reads, kind, "h")(message)
            wrote = values_of(contract_decoder(writes, writes.kinds[None], "h")(message))
            assert same_as_far_as_known(kind.DESCRIPTOR, values_of(read), wrote)


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        ({1: ("int32", False)}, {1: ("int32", False), 2: ("string", False)}, set()),
        ({1: ("int32", False)}, {1: ("int64", False)}, {"forward"}),
        ({1: ("int32", False)}, {1: ("sint32", False)}, {"backward", "forward"}),
        ({1: ("int32", False)}, {2: ("int32", False)}, set()),
        ({1: ("string", False)}, {1: ("bytes", False)}, {"forward"}),
        ({1: ("small", False)}, {1: ("large", False)}, {"forward"}),
        ({1: ("inner", True)}, {1: ("other", True)}, set()),
        ({1: ("inner", False)}, {1: ("text", False)}, {"backward", "forward"}),
        ({1: ("inner", False)}, {1: ("inner", True)}, {"backward", "forward"}),
    ],
)
def test_a_change_of_protobuf_breaks_what_it_breaks(old: Any, new: Any, broken: set[str]) -> None:
    topics = [Topic[Any]("t", generated(each), codec=Protobuf()) for each in (old, new)]
    assert directions(*topics) == broken


# --- across codecs


def avro(registered: bool = True) -> Any:
    return Avro(registry=MemoryRegistry()) if registered else Avro()


ID = struct("T", [("id", str)])
MORE = struct("T", [("id", str), ("n", int, 0)])


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        (Topic("t", ID), Topic("t", MORE, codec=MessagePack()), set()),
        (Topic("t", ID, codec=avro()), Topic("t", MORE, codec=avro()), set()),
        (Topic("t", ID, codec=avro(False)), Topic("t", MORE, codec=avro(False)), {"backward", "forward"}),
        (Topic("t", ID, codec=avro(False)), Topic("t", ID, codec=avro(False)), set()),
        (Topic("t", ID), Topic("t", ID, codec=avro()), {"backward", "forward"}),
        (Topic("t", ID, codec=avro(False)), Topic("t", ID, codec=avro()), {"backward", "forward"}),
        (
            Topic("t", struct("T", [("at", struct("A", [("x", int)]))]), codec=avro()),
            Topic("t", struct("T", [("at", struct("B", [("x", int)]))]), codec=avro()),
            {"backward", "forward"},
        ),
        (
            Topic("t", ID, codec=avro()),
            Topic("t", struct("T", [("id", str), ("at", datetime, datetime(2026, 1, 1))]), codec=avro()),
            {"backward"},  # JSON has no such default in its schema, so Avro has none
        ),
    ],
)  # fmt: skip
def test_what_a_codec_cannot_read_is_broken(old: Topic[Any], new: Topic[Any], broken: set[str]) -> None:
    assert directions(old, new) == broken


@QUICK
@given(st.data())
def test_json_and_message_pack_read_one_another(data: Any) -> None:
    old, new = data.draw(pairs())
    topics = Topic("t", old, codec=MessagePack()), Topic("t", new, codec=JSON())
    broken = directions(*topics)
    for direction, writes, reads in (("backward", *topics), ("forward", *reversed(topics))):
        if direction not in broken:
            assert is_read(reads, written(writes, data.draw(payloads(writes.kinds[None]))))


def test_a_document_without_the_schema_of_its_bytes_cannot_be_judged() -> None:
    for topic, name in (
        (Topic("t", ID, codec=avro()), "x-avro"),
        (Topic("t", generated({1: ("int32", False)}), codec=Protobuf()), "x-protobuf"),
    ):
        bare, wrong = document(topic), document(topic)
        message = next(iter(bare["components"]["messages"].values()))
        del message[name]
        assert {each.direction for each in diff(bare, document(topic))} == {"backward", "forward"}
        next(iter(wrong["components"]["messages"].values()))[name] = {"message": 5}
        with pytest.raises(ConfigError, match=f"{name!r} of the document is no schema"):
            diff(wrong, wrong)
