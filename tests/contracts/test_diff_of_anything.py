"""Whatever a file says, `contract diff` compares it or refuses it in one sentence."""

import copy
import json
import re
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from things_kit import ConfigError, Topic
from things_kit.cli import documents
from things_kit.cli.app import app as program
from things_kit.codecs import Avro, Protobuf
from things_kit.contracts.asyncapi import asyncapi
from things_kit.contracts.diff import diff

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class Line(msgspec.Struct, tag=True):
    sku: str
    count: int | None = None


class Note(msgspec.Struct, tag=True):
    text: str
    kind: Literal["a", "b"] = "a"


class Order(msgspec.Struct, forbid_unknown_fields=True):
    lines: list[Line | Note]
    pair: tuple[int, str]
    notes: dict[str, "Order"] = {}


DOCUMENT: dict[str, Any] = json.loads(
    json.dumps(
        asyncapi(
            "t",
            topics=[
                Topic("orders", Order, version=1, reply=Note),
                Topic[Line | Note]("several", {"line": Line, "note": Note}, by="type"),
                Topic("avro", Order, codec=Avro()),
                Topic("protobuf", Struct, codec=Protobuf()),
            ],
        )
    )
)

NAMES = [
    "$ref", "type", "properties", "required", "items", "anyOf", "oneOf", "allOf", "enum", "const", "minimum", "multipleOf",
    "maxLength", "additionalProperties", "patternProperties", "not", "channels", "messages", "address", "payload", "name",
    "contentType", "x-version", "x-avro", "x-protobuf", "fields", "symbols", "of", "message", "a",
]  # fmt: skip
WORDS = [
    "#/components/schemas/Order", "#/channels", "#/nowhere", "#", "object", "array", "string", "number", "record", "enum",
    "fixed", "map", "union", "3.0.0", "application/avro", "application/vnd.confluent.avro", "orders", "message", "",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(WORDS), st.floats(), st.just(10**400), st.just(-(2**70))
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)

LEAKED = re.compile(r"Error|object has no|NoneType|unhashable|not subscriptable|Traceback|\n|unpack|<class")
"""Python's words, which are not for who wrote a document."""


def places(found: Any) -> list[tuple[Any, Any]]:
    """Where in a document something stands: what it stands in, and its name there."""
    inside: Any = (
        found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    )
    return [place for name, each in inside for place in [(found, name), *places(each)]]


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """A document of ours in which one thing, or two, are anything, or missing."""
    document = copy.deepcopy(DOCUMENT)
    for _ in range(draw(st.integers(1, 2))):
        spots = places(document)
        home, name = spots[draw(st.integers(0, len(spots) - 1))]
        if draw(st.booleans()) and isinstance(home, dict):
            del home[name]
        else:
            home[name] = draw(ANYTHING)
    return document


def compared_or_refused(old: Any, new: Any) -> None:
    refused = ""
    try:
        diff(old, new)
    except ConfigError as error:
        refused = str(error)
    assert not LEAKED.search(refused), refused


@QUICK
@given(damaged())
def test_a_document_with_a_fault_is_compared_or_refused_in_a_sentence(document: Any) -> None:
    compared_or_refused(document, document)
    compared_or_refused(document, DOCUMENT)
    compared_or_refused(DOCUMENT, document)


@QUICK
@given(ANYTHING)
def test_a_payload_that_is_anything_is_compared_or_refused_in_a_sentence(payload: Any) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["components"]["messages"]["Order"]["payload"] = payload
    compared_or_refused(document, document)
    compared_or_refused(document, DOCUMENT)
    compared_or_refused(DOCUMENT, document)


@QUICK
@given(ANYTHING)
def test_anything_at_all_is_refused_in_a_sentence(document: Any) -> None:
    compared_or_refused(document, DOCUMENT)
    compared_or_refused({"asyncapi": "3.0.0", "channels": document}, DOCUMENT)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ('{"asyncapi": "3.0.0", "channels": 5}', "expected `object | null`, got `int` - at `$.channels`"),
        ('{"asyncapi": "3.0.0", "channels": {"a": {"messages": {"m": {"$ref": "#/channels/a"}}}}}', None),
        ('{"asyncapi": "3.0.0", "channels": {"a": {"messages": {"m": {"name": 5}}}}}', "expected `str`, got `int`"),
        ("asyncapi: 3.0.0\nchannels: {1: {messages: {2: {payload: {enum: [2026-01-02]}}}}}", None),
        ("asyncapi: 3.0.0\nchannels: &a {b: *a}", "nested too deeply"),
        ("9" * 5000, "is neither JSON nor YAML"),
        ("a: !!timestamp x", "is neither JSON nor YAML"),
        ("\ufeff{\"asyncapi\": \"3.0.0\"}", None),
        ("a: !!python/object:os.system x", "is neither JSON nor YAML"),
        ("? [a]\n: b", "is neither JSON nor YAML"),
        ("{{a: b}: c}", "is neither JSON nor YAML"),
    ],
    ids=lambda each: str(each)[:40],
)  # fmt: skip
def test_the_command_says_in_one_line_what_is_wrong_with_a_file(
    document: str, why: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "document"
    file.write_text(document)
    done = CliRunner().invoke(program, ["contract", "diff", str(file), str(file)])
    assert done.exit_code == (0 if why is None else 2), (done.output, done.exception)
    assert (why or "") in done.output
    assert len(done.output.splitlines()) <= 1, done.output


def test_aliases_of_yaml_that_multiply_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST", 1000)
    file = tmp_path / "document.yaml"
    lines = [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    file.write_text("\n".join(["a0: &a0 [1, 1]", *lines]))
    done = CliRunner().invoke(program, ["contract", "diff", str(file), str(file)])
    assert done.exit_code == 2
    assert "it has more than 1,000 values" in done.output


def test_alternatives_that_multiply_are_refused() -> None:
    document = copy.deepcopy(DOCUMENT)
    schemas = document["components"]["schemas"]
    for number in range(40):
        inner = {"$ref": f"#/components/schemas/S{number + 1}"}
        schemas[f"S{number}"] = {"anyOf": [inner, inner, {"type": "array", "items": inner}]}
    schemas["S40"] = {"type": "string"}
    document["components"]["messages"]["Order"]["payload"] = {"$ref": "#/components/schemas/S0"}
    with pytest.raises(ConfigError, match="too many alternatives to be compared"):
        diff(document, document)
