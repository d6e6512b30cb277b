"""What a change of a contract breaks."""

import json
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
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


def document_of(payload: Any, **schemas: Any) -> dict[str, Any]:
    """A document as other programs write it."""
    messages = {"m": {"payload": payload}}
    return {
        "asyncapi": "3.0.0",
        "channels": {"t": {"messages": messages}},
        "components": {"schemas": schemas},
    }


WHOLE, TEXT = {"type": "integer"}, {"type": "string"}
X = {"$ref": "#/components/schemas/X"}


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        ({"type": "array", "prefixItems": [TEXT]}, {"type": "array", "prefixItems": [WHOLE]}, BOTH),
        ({"type": "array", "prefixItems": [TEXT]}, {"type": "array", "prefixItems": [TEXT]}, set()),
        ({"schemaFormat": "a", "schema": {}}, {"schemaFormat": "a", "schema": {"fields": []}}, BOTH),
        ({"required": ["a"], "properties": {"a": TEXT}}, {"required": ["a", "b"], "properties": {"a": TEXT}}, {"backward"}),
        ({}, {"minLength": 1}, {"backward"}),
        (TEXT, {"properties": {"a": WHOLE}}, {"forward"}),
        ({"allOf": [{"type": "integer", "minimum": 1}]}, {"allOf": [{"type": "integer", "minimum": 1}, {"minimum": 5}]}, {"backward"}),
        ({"allOf": [{"minimum": 1}, {"minimum": 5}]}, {"allOf": [{"minimum": 1}, {"minimum": 5}]}, set()),
        ({"type": "object", "properties": {"a": TEXT}},
         {"allOf": [{"properties": {"a": TEXT}}, {"properties": {"a": {"maxLength": 1}}}], "type": "object"}, {"backward"}),
        ({"type": "object", "properties": {"a": TEXT}},
         {"type": "object", "properties": {"a": TEXT}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"backward"}),
        ({"anyOf": [TEXT, WHOLE]}, {"anyOf": [TEXT, WHOLE], "oneOf": [TEXT]}, {"backward"}),
        ({"type": "object", "patternProperties": {"a": TEXT}}, {"type": "object", "properties": {"aa": WHOLE}}, BOTH),
        ({"type": "integer", "multipleOf": 0.3}, {"type": "integer", "multipleOf": 0.1}, {"forward"}),
        ({"anyOf": [False, TEXT]}, TEXT, set()),
        (False, TEXT, {"forward"}),
    ],
    ids=lambda each: str(sorted(each) if isinstance(each, set) else each),
)  # fmt: skip
def test_a_schema_of_another_program_is_judged_or_said_to_be_broken(
    old: Any, new: Any, broken: set[str]
) -> None:
    assert {each.direction for each in diff(document_of(old), document_of(new))} == broken


def test_what_both_say_and_the_rules_do_not_know_is_compared_behind_its_references() -> None:
    one = document_of({"not": X}, X={"type": "object", "properties": {"x": X}})
    assert diff(one, one) == []
    assert {each.direction for each in diff(one, document_of({"not": X}, X=TEXT))} == BOTH


def test_what_held_as_long_as_another_did_is_looked_at_again() -> None:
    """`B` is in `A`, which is no alternative in the end: then `B` is not read either."""

    def a(text: Any) -> dict[str, Any]:
        inside = {"b": {"$ref": "#/components/schemas/B"}, "x": text}
        return {"type": "object", "properties": inside, "required": ["b"]}

    b = {"type": "object", "properties": {"a": {"$ref": "#/components/schemas/A"}}}
    refs = {name: {"$ref": f"#/components/schemas/{name}"} for name in "AB"}
    holds = {"type": "object", "properties": {"p": refs["A"]}}
    old = document_of({"type": "array", "items": [holds, refs["B"]]}, A=a(TEXT), B=b)
    new = document_of({"type": "array", "items": [{"anyOf": [holds, {}]}, refs["B"]]}, A=a(WHOLE), B=b)
    assert "backward" in {each.direction for each in diff(old, new)}


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
    ids=lambda each: str(sorted(each) if isinstance(each, set) else each),
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


def test_why_a_file_cannot_be_read_is_said_without_the_machine_s_words(tmp_path: Path) -> None:
    binary = tmp_path / "old.json"
    binary.write_bytes(b"\xfe\xff")
    assert "is no text in UTF-8" in run(str(binary), str(binary)).output
    missing = run(str(tmp_path / "none.json"), str(binary)).output
    assert "No such file or directory" in missing
    assert "Errno" not in missing
