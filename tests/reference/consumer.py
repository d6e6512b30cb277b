"""Every argument of `broker.consumer`."""

import inspect
import re
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from tests.reference.tables import code, table
from things_kit import Batch, Broker, RetryPolicy
from things_kit.engine.options import ARGUMENTS
from things_kit.messaging.policy import Discard

INTRODUCTION = """# Every argument of a consumer

`broker.consumer(topic, *, group, handler, ...)`, `@app.on(topic, ...)` and `kafka.consume(topic, ...)` take the same arguments, and so does a
broker's section of the [configuration](configuration.md). Durations are seconds, or a `timedelta`. What each of them means for your messages is in
[Handlers and outcomes](../handlers.md).

"""
WORDS = {
    NoneType: "None",
    Discard: "`DISCARD`",
    tuple: "a tuple of exception types",
    Sequence: "a list",
}
BATCH = {
    "size": "The most messages in a list.",
    "wait": "Seconds to wait for a list to fill, from its first message on.",
}


def consumer_page() -> str:
    said = described(inspect.getdoc(Broker.consumer) or "", "Args")
    rows = [
        [code("topic"), "a name, a `Topic`, or a list of them", "", said["topic"]],
        [code("handler"), "a function, or an object with `handle`", "", said["handler"]],
        *([code(each.name), kind(each.type), default(each), said[each.name]] for each in ARGUMENTS),
    ]
    heads = ["argument", "type", "default", "what it does"]
    policy = described(inspect.getdoc(RetryPolicy) or "", "Attributes")
    return "\n".join((
        INTRODUCTION + table(heads, rows),
        "\n## `RetryPolicy`\n",
        table(heads, rows_of(RetryPolicy, policy)),
        "\n## `Batch`\n",
        table(heads, rows_of(Batch, BATCH)),
        "",
    ))  # fmt: skip


def rows_of(struct: type[msgspec.Struct], said: dict[str, str]) -> list[list[str]]:
    return [
        [code(each.name), kind(each.type), default(each), said[each.name]]
        for each in msgspec.structs.fields(struct)
    ]


def described(docstring: str, section: str) -> dict[str, str]:
    """What a docstring says of each argument."""
    _, _, rest = docstring.partition(f"\n{section}:\n")
    body = re.split(r"\n\n|\n(?=\S)", rest)[0]
    found = re.findall(r"^ {4}(\w+): (.+(?:\n {5,}.+)*)", body, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def kind(annotation: Any) -> str:
    """A type in the words of who reads it."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return kind(get_args(annotation)[0])
    if origin in {Union, UnionType}:
        return " or ".join(dict.fromkeys(map(kind, get_args(annotation))))
    if origin is Literal:
        return ", ".join(code(f'"{each}"') for each in get_args(annotation))
    return WORDS.get(origin or annotation) or code((origin or annotation).__name__)


def default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "must be said"
    if isinstance(field.default, msgspec.Struct):
        return code(f"{type(field.default).__name__}()")
    return code(f'"{field.default}"' if isinstance(field.default, str) else repr(field.default))
