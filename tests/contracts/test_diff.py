"""What a change of a contract breaks: the verdict, and what really decodes."""

import json
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from things_kit import ConfigError, Topic
from things_kit.cli.app import app as program
from things_kit.contracts.asyncapi import asyncapi
from things_kit.contracts.diff import diff


class Tree(msgspec.Struct):
    children: "list[Tree]" = []


def document(*topics: Topic[Any]) -> dict[str, Any]:
    return json.loads(json.dumps(asyncapi("t", topics=topics)))  # type: ignore[no-any-return] # it is one


def directions(old: Any, new: Any) -> set[str | None]:
    return {finding.direction for finding in diff(document(Topic("t", old)), document(Topic("t", new)))}


def struct(*fields: Any, **options: Any) -> Any:
    return msgspec.defstruct("Order", fields, **options)


BOTH = {"backward", "forward"}


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        (struct(("id", str)), struct(("id", str)), set()),
        (struct(("id", str)), struct(("id", str), ("n", int)), {"backward"}),
        (struct(("id", str)), struct(("id", str), ("n", int, 0)), set()),
        (struct(("id", str), ("n", int)), struct(("id", str)), {"forward"}),
        (struct(("id", str), ("n", int, 0)), struct(("id", str)), set()),
        (struct(("name", str)), struct(("title", str)), BOTH),
        (struct(("n", int)), struct(("n", float)), {"forward"}),
        (struct(("n", int)), struct(("n", str)), BOTH),
        (struct(("n", int)), struct(("n", int | None)), {"forward"}),
        (struct(("n", int | str)), struct(("n", int)), {"backward"}),
        (struct(("n", Literal["a"])), struct(("n", Literal["a", "b"])), {"forward"}),
        (struct(("n", Literal["a", "b"])), struct(("n", str)), {"forward"}),
        (struct(("n", list[int])), struct(("n", list[float])), {"forward"}),
        (struct(("n", dict[str, int])), struct(("n", dict[str, str])), BOTH),
        (struct(("id", str)), struct(("id", str), ("n", int, 0), forbid_unknown_fields=True), set()),
        (struct(("id", str), forbid_unknown_fields=True), struct(("id", str), ("n", int, 0)), {"forward"}),
        (struct(("o", struct(("n", int)))), struct(("o", struct(("n", int), ("m", int)))), {"backward"}),
        (dict[str, int], struct(("n", int)), {"backward"}),
    ],
)
def test_a_change_breaks_what_it_breaks(old: Any, new: Any, broken: set[str]) -> None:
    assert directions(old, new) == broken


def shop(**kinds: Any) -> Topic[Any]:
    make: Any = Topic
    topic: Topic[Any] = make("shop", kinds, by="type")
    return topic


A, B = msgspec.defstruct("A", [("id", str)]), msgspec.defstruct("B", [("id", str)])


def test_types_of_a_topic_come_and_go() -> None:
    assert {f.direction for f in diff(document(shop(a=A)), document(shop(a=A, b=B)))} == {"forward"}
    assert {f.direction for f in diff(document(shop(a=A, b=B)), document(shop(a=A)))} == {"backward"}


def test_what_answers_a_request_is_compared_too() -> None:
    (added,) = diff(
        document(Topic("t", A, reply=A)), document(Topic("t", A, reply=struct(("id", str), ("n", int))))
    )
    assert (added.topic, added.path, added.direction) == ("t_reply", "n", "backward")


def test_channels_come_and_go_without_breaking_anybody() -> None:
    findings = diff(document(Topic("a", A)), document(Topic("b", A)))
    assert [(each.topic, each.direction) for each in findings] == [("a", None), ("b", None)]


def test_upcasters_make_a_change_backward_and_a_version_is_refused_by_older_consumers() -> None:
    first = Topic("t", A, version=1)
    second = Topic("t", struct(("id", str), ("n", int)), version=2, upcast={1: lambda old: {**old, "n": 0}})
    assert {f.direction for f in diff(document(first), document(second))} == {"forward"}
    lenient = Topic("t", A, version=1, accept_newer=True)
    assert diff(document(lenient), document(second)) == []


def test_recursive_types_are_compared() -> None:
    first = document(Topic("t", Tree))
    changed = json.loads(json.dumps(first))
    changed["components"]["schemas"]["Tree"]["properties"]["n"] = {"type": "integer"}
    assert diff(first, changed) == []
    changed["components"]["schemas"]["Tree"]["required"] = ["n"]
    assert {f.direction for f in diff(first, changed)} == {"backward"}


@pytest.mark.parametrize(
    "wrong",
    [
        None, 5, [], {}, {"asyncapi": "2.6.0"}, {"asyncapi": "3.0.0", "channels": 5},
        {"asyncapi": "3.0.0", "channels": {"a": {"messages": {"m": {"$ref": "#/nowhere"}}}}},
        {"asyncapi": "3.0.0", "channels": {"a": {"messages": {"m": {"$ref": "http://x"}}}}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_document_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        diff(wrong, document(Topic("t", A)))


def test_hostile_schemas_end_in_a_sentence() -> None:
    deep: Any = {"type": "string"}
    for _ in range(3000):
        deep = {"type": "array", "items": deep}
    loop = {"$ref": "#/components/schemas/L"}
    for payload in (deep, loop):
        hostile = document(Topic("t", A))
        hostile["components"]["messages"]["A"]["payload"] = payload
        hostile["components"]["schemas"]["L"] = loop
        with pytest.raises(ConfigError):
            diff(hostile, hostile)
    huge = document(Topic("t", A))
    huge["components"]["messages"]["A"]["payload"] = {"enum": [str(n) for n in range(100_000)]}
    assert diff(huge, huge) == []


# --- the verdict and what really decodes

SCALARS: list[Any] = [int, float, str, bool, type(None), Literal["a", "b"], Literal["a"], Literal[1, 2]]
kinds = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: st.one_of(
        inner.map(lambda kind: list[kind]),  # type: ignore[valid-type] # made at run time
        inner.map(lambda kind: dict[str, kind]),  # type: ignore[valid-type]
        inner.map(lambda kind: kind | None),
    ),
    max_leaves=3,
)


@st.composite
def structs(draw: Any) -> Any:
    fields = []
    for name in draw(st.sets(st.sampled_from("abc"), min_size=1)):
        kind = draw(kinds)
        optional = draw(st.booleans())
        fields.append((name, kind | None, None) if optional else (name, kind))
    fields.sort(key=len)
    return msgspec.defstruct("T", fields, forbid_unknown_fields=draw(st.booleans()), kw_only=True)


def values(kind: Any) -> st.SearchStrategy[Any]:
    info = msgspec.inspect.type_info(kind)
    return _values(info)


def _values(info: Any) -> st.SearchStrategy[Any]:
    shapes = msgspec.inspect
    simple: dict[Any, st.SearchStrategy[Any]] = {
        shapes.IntType: st.integers(-5, 5),
        shapes.FloatType: st.sampled_from([0.5, -1.25, 3.0]),
        shapes.StrType: st.sampled_from(["", "a", "b", "zz"]),
        shapes.BoolType: st.booleans(),
        shapes.NoneType: st.none(),
    }
    if type(info) in simple:
        return simple[type(info)]
    match info:
        case shapes.LiteralType():
            return st.sampled_from(list(info.values))
        case shapes.UnionType():
            return st.one_of(*map(_values, info.types))
        case shapes.ListType():
            return st.lists(_values(info.item_type), max_size=2)
        case shapes.DictType():
            return st.dictionaries(st.sampled_from("abx"), _values(info.value_type), max_size=2)
    raise AssertionError(info)


def payloads(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    fields = msgspec.structs.fields(kind)
    required = {field.name: values(field.type) for field in fields if field.required}
    optional = {field.name: values(field.type) for field in fields if not field.required}
    return st.fixed_dictionaries(required, optional=optional)


def decodes(kind: Any, payload: Any) -> bool:
    try:
        msgspec.json.decode(msgspec.json.encode(payload), type=kind)
    except msgspec.ValidationError:
        return False
    return True


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_verdict_that_a_change_is_compatible_is_wrong(data: Any) -> None:
    old, new = data.draw(structs()), data.draw(structs())
    broken = directions(old, new)
    if "backward" not in broken:
        assert decodes(new, data.draw(payloads(old)))
    if "forward" not in broken:
        assert decodes(old, data.draw(payloads(new)))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(structs())
def test_what_did_not_change_is_compatible(kind: Any) -> None:
    assert directions(kind, kind) == set()


# --- the command


def run(*words: str) -> Any:
    return CliRunner().invoke(program, ["contract", "diff", *words])


def test_the_command_compares_files_and_says_what_is_broken(tmp_path: Path) -> None:
    import yaml  # noqa: PLC0415 - of this test alone

    old, new = tmp_path / "old.json", tmp_path / "new.yaml"
    old.write_text(json.dumps(document(Topic("t", struct(("id", str))))))
    new.write_text(yaml.safe_dump(document(Topic("t", struct(("id", str), ("n", int))))))
    done = run(str(old), str(new))
    assert done.exit_code == 1
    assert "not backward" in done.stdout
    assert run(str(old), str(new), "--require", "forward").exit_code == 0
    row = json.loads(run(str(old), str(new), "--json").stdout)
    assert row == {
        "topic": "t", "message": "Order", "path": "n", "direction": "backward", "reason": "it is not written, and is required",
    }  # fmt: skip
    assert run(str(old), str(old)).exit_code == 0


@pytest.mark.parametrize(
    "content", ["{", "[1", "a: [", "just text", '{"asyncapi": "2.0.0"}', "[" * 100_000], ids=lambda c: c[:9]
)
def test_what_cannot_be_read_is_exit_code_2(content: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(content)
    assert run(str(wrong), str(wrong)).exit_code == 2
    assert run(str(tmp_path / "missing"), str(wrong)).exit_code == 2
