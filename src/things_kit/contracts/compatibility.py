"""Whether what one schema writes another one reads.

A message has the fields of its schema and no others; one that is not required may be absent. Readers ignore fields that
they do not know, unless they say `additionalProperties: false`. A verdict of "it is read" is never wrong: what cannot be
judged is said to be broken.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any, Final, NamedTuple

from things_kit.contracts.shapes import Schema, check
from things_kit.messaging.errors import ConfigError

DEEPEST: Final = 200
"""Schemas in one another that are looked at."""

MOST: Final = 100_000
"""Schemas, and alternatives of them, that are looked at: what has more cannot be compared."""

_KINDS: Final = ("object", "array", "string", "number", "boolean", "null")
_JUDGED: Final = frozenset({
    "type", "enum", "const", "properties", "additionalProperties", "required", "items", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems", "format",
    "pattern", "contentEncoding", "propertyNames", "minProperties", "maxProperties",
})  # fmt: skip
"""What the rules know; of anything else both sides must say the same."""
_LOWER: Final = (("minimum", False), ("exclusiveMinimum", True))
_UPPER: Final = (("maximum", False), ("exclusiveMaximum", True))


class Broken(NamedTuple):
    """What the reader cannot read: where, and why."""

    path: str
    reason: str


class Reader:
    """Compares what a writer's schema may write with what a reader's takes; each document has its own references."""

    def __init__(self, written_in: Mapping[str, Any], read_in: Mapping[str, Any]) -> None:
        self._written = _Schemas(written_in, "written")
        self._read = _Schemas(read_in, "read")
        self._assumed: dict[tuple[str, str], None] = {}
        self._left = MOST

    def payload(self, writes: Any, reads: Any) -> list[Broken]:
        """What of a message's payload the reader does not take. Raises ConfigError for what is no schema."""
        try:
            return self.broken(self._written.checked(writes), self._read.checked(reads))
        except RecursionError:
            raise ConfigError("the schemas are nested too deeply to be compared") from None

    def broken(self, writes: Any, reads: Any, path: str = "", depth: int = 0) -> list[Broken]:
        """What of the writer's schema the reader's does not take; nothing where all is read."""
        if depth > DEEPEST:
            raise ConfigError("the schemas are nested too deeply to be compared")
        self._look()
        pair, before = (_reference(writes), _reference(reads)), len(self._assumed)
        if all(pair):
            if pair in self._assumed:
                return []  # of a recursive type: it holds unless something else breaks it
            self._assumed[pair] = None
        writes, reads = self._written.resolved(writes), self._read.resolved(reads)
        if reads is True or not reads:
            return [Broken(path, "nothing is read here any more")] if reads is False else []
        found: list[Broken] = []
        for alternative in self._alternatives(writes, self._written):
            found += self._alternative(alternative, reads, path, depth)
        while found and len(self._assumed) > before:
            self._assumed.popitem()  # with it goes what held only as long as it did
        return found

    def _look(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ConfigError("the schemas have too many alternatives to be compared")

    def _alternative(self, writes: Any, reads: Any, path: str, depth: int) -> list[Broken]:
        """One that is written must be one of those that are read; the nearest tells what is broken."""
        best: list[Broken] | None = None
        for alternative in self._alternatives(reads, self._read):
            found = self._one(writes, alternative, path, depth)
            if not found:
                return []
            if best is None or _distance(writes, alternative, found) < _distance(writes, alternative, best):
                best = found
        return best if best is not None else [Broken(path, "nothing is read here any more")]

    def _alternatives(self, schema: Any, schemas: "_Schemas", depth: int = 0) -> Iterator[Any]:
        """What a union, or a type of several, may be."""
        self._look()
        if depth > DEEPEST:
            raise ConfigError("the schemas are nested too deeply to be compared")
        schema = schemas.resolved(schema)
        if not isinstance(schema, Mapping):
            if schema is not False:
                yield {}
            return
        name = next((each for each in ("allOf", "anyOf", "oneOf") if each in schema), None)
        if name is not None:
            rest = {each: value for each, value in schema.items() if each != name and each not in _SILENT}
            if name == "allOf":
                for part in schema[name]:
                    rest = _merged(rest, schemas.resolved(part))
                yield from self._alternatives(rest, schemas, depth + 1)
                return
            for part in schema[name]:
                yield from self._alternatives(
                    _merged(rest, schemas.resolved(part)) if rest else part, schemas, depth + 1
                )
        elif isinstance(kinds := schema.get("type"), list):
            yield from ({**schema, "type": kind} for kind in kinds)
        else:
            yield schema

    # --- one against one

    def _one(self, writes: Any, reads: Any, path: str, depth: int) -> list[Broken]:
        if not _constraining(reads):
            return []
        if (unjudged := self._unjudged(writes, reads)) is not None:
            return [Broken(path, f"whether {unjudged!r} holds cannot be judged")]
        if (values := _values(writes)) is not None:
            return self._values_read(values, reads, path)
        if (taken := _values(reads)) is not None:
            both = {"true", "false"} <= {_text(each) for each in taken} and writes.get("type") == "boolean"
            return [] if both else [Broken(path, f"only {_shown(taken)} are read")]
        return self._of_kinds(writes, reads, path, depth)

    def _of_kinds(self, writes: Any, reads: Any, path: str, depth: int) -> list[Broken]:
        kind, wanted = writes.get("type"), reads.get("type")
        if kind is None and wanted is None:  # either may be anything
            every = ({**writes, "type": each} for each in _KINDS)
            return next(filter(None, (self._of_kinds(each, reads, path, depth) for each in every)), [])
        if wanted is not None and kind != wanted and not (kind == "integer" and wanted == "number"):
            return [Broken(path, f"{kind or 'anything'} is written, {wanted} is read")]
        return [
            *_bounds(writes, reads, path),
            *self._object(writes, reads, path, depth),
            *self._array(writes, reads, path, depth),
        ]

    def _unjudged(self, writes: Any, reads: Any) -> str | None:
        """A keyword that the rules do not know and that the two do not share."""
        unknown = [name for name in _constraining(reads) if name not in _JUDGED]
        unknown += [name for name in _WIDENING if name in writes]
        if not unknown or self._same(_constraining(writes), _constraining(reads)):
            return None
        return unknown[0]

    def _same(self, one: Any, other: Any, assumed: frozenset[tuple[str, str]] = frozenset()) -> bool:
        """Whether two say the same, also behind their references."""
        self._look()
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(
                self._same(*pair, assumed) for pair in zip(one, other, strict=True)
            )
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            return bool(type(one) is type(other) and one == other)
        pair = (_reference(one), _reference(other))
        if all(pair):
            if pair in assumed:
                return True
            return self._same(self._written.resolved(one), self._read.resolved(other), assumed | {pair})
        return one.keys() == other.keys() and all(self._same(one[name], other[name], assumed) for name in one)

    def _values_read(self, values: Iterable[Any], reads: Any, path: str) -> list[Broken]:
        taken = _values(reads)
        if taken is not None:
            known = {_text(each) for each in taken}
            missing = [each for each in values if _text(each) not in known]
        else:
            missing = [each for each in values if not _is_of(each, reads)]
        return [Broken(path, f"{_shown(missing)} is not read")] if missing else []

    def _object(self, writes: Any, reads: Any, path: str, depth: int) -> list[Broken]:
        if writes.get("type") != "object":
            return []
        written, read = writes.get("properties", {}), reads.get("properties", {})
        free = writes.get("additionalProperties", None if "properties" in writes else True)
        found: list[Broken] = []
        for name in reads.get("required", ()):
            if name not in writes.get("required", ()) or (name not in written and free in {None, False}):
                why = "may be absent" if name in written else "is not written"
                found.append(Broken(f"{path}.{name}", f"it {why}, and is required"))
        for name, schema in read.items():
            if name in written:
                found += self.broken(written[name], schema, f"{path}.{name}", depth + 1)
            elif free is not None and free is not False:
                found += self.broken(free, schema, f"{path}.{name}", depth + 1)
        others = reads.get("additionalProperties", True)
        for name, schema in written.items():
            if name not in read and others is False:
                found.append(Broken(f"{path}.{name}", "it is not known, and unknown fields are refused"))
            elif name not in read and others is not True:
                found += self.broken(schema, others, f"{path}.{name}", depth + 1)
        if free is not None and free is not False and others is not True:
            found += self.broken(free, others, f"{path}.*", depth + 1)
        return [*found, *self._entries(writes, reads, path, depth)]

    def _entries(self, writes: Any, reads: Any, path: str, depth: int) -> list[Broken]:
        """How fields are called, and how many there are."""
        written = writes.get("properties", {})
        free = writes.get("additionalProperties", None if "properties" in writes else True)
        open_ = free is not None and free is not False
        found: list[Broken] = []
        if "propertyNames" in reads:
            names: list[Any] = [{"const": name} for name in written]
            if open_:
                names.append({"allOf": [{"type": "string"}, writes.get("propertyNames", True)]})
            for name in names:
                found += self.broken(name, reads["propertyNames"], f"{path}.*", depth + 1)
        least = max(writes.get("minProperties", 0), len(set(writes.get("required", ()))))
        if reads.get("minProperties", 0) > least:
            found.append(Broken(path, f"minProperties is {reads['minProperties']}"))
        most = min(writes.get("maxProperties", math.inf), math.inf if open_ else len(written))
        if reads.get("maxProperties", math.inf) < most:
            found.append(Broken(path, f"maxProperties is {reads['maxProperties']}"))
        return found

    def _array(self, writes: Any, reads: Any, path: str, depth: int) -> list[Broken]:
        if writes.get("type") != "array" or "items" not in reads:
            return []
        items, wanted = writes.get("items", {}), reads["items"]
        if isinstance(wanted, list):
            if not isinstance(items, list) or len(items) < len(wanted):
                return [Broken(path, f"{len(wanted)} items are read")]
            pairs = list(zip(items, wanted, strict=False))
        else:
            pairs = [(each, wanted) for each in (items if isinstance(items, list) else [items])]
        found: list[Broken] = []
        for written, read in pairs:
            found += self.broken(written, read, f"{path}[]", depth + 1)
        return found


def _bounds(writes: Any, reads: Any, path: str) -> list[Broken]:
    """Bounds, sizes, patterns and formats that the reader has and the writer may overstep."""
    found: list[Broken] = []
    for sides, sign in ((_LOWER, 1), (_UPPER, -1)):
        theirs, ours = _edge(writes, sides, sign), _edge(reads, sides, sign)
        if ours is not None and (theirs is None or theirs < ours):
            name, value = next((each, reads[each]) for each, _ in sides if each in reads)
            found.append(Broken(path, f"{name} is {value}"))
    for name, sign in (("minLength", 1), ("minItems", 1), ("maxLength", -1), ("maxItems", -1)):
        ours = reads.get(name)
        theirs = writes.get(name, 0 if sign == 1 else None)
        if ours is not None and (theirs is None or sign * theirs < sign * ours):
            found.append(Broken(path, f"{name} is {ours}"))
    found += [
        Broken(path, f"{name} is {reads[name]}")
        for name in ("format", "pattern", "contentEncoding")
        if name in reads and reads[name] != writes.get(name)
    ]
    step, theirs = reads.get("multipleOf"), writes.get("multipleOf")
    if step is not None and (theirs is None or Fraction(str(theirs)) % Fraction(str(step))):
        found.append(Broken(path, f"multipleOf is {step}"))
    return found


def _edge(schema: Any, sides: Iterable[tuple[str, bool]], sign: int) -> tuple[float, bool] | None:
    """The strictest bound on one side, so that a stricter one is greater."""
    edges = [(sign * schema[name], exclusive) for name, exclusive in sides if name in schema]
    return max(edges) if edges else None


class _Schemas:
    """The schemas of a document, each looked at before it is used."""

    def __init__(self, document: Mapping[str, Any], side: str) -> None:
        self._document = document
        self._side = side
        self._known: dict[str, Any] = {}

    def checked(self, schema: Any, reference: str = "") -> Any:
        """A schema. Raises ConfigError for what is none."""
        where = f" at {reference}" if reference else ""
        check(schema, bool | Schema, f"the schema that is {self._side}{where} is none")
        return schema

    def resolved(self, schema: Any) -> Any:
        """What references lead to. Raises ConfigError where they lead nowhere, or to what is no schema."""
        for _ in range(DEEPEST):
            reference = _reference(schema)
            if not reference:
                return schema
            if reference not in self._known:
                self._known[reference] = self.checked(resolve(self._document, reference), reference)
            schema = self._known[reference]
        raise ConfigError(f"the reference {reference!r} leads to itself")


def _reference(schema: Any) -> str:
    return str(schema["$ref"]) if isinstance(schema, Mapping) and "$ref" in schema else ""


def resolve(document: Mapping[str, Any], reference: str) -> Any:
    """What a reference inside a document names. Raises ConfigError."""
    found: Any = document
    if not reference.startswith("#/"):
        raise ConfigError(f"the reference {reference!r} leads out of the document")
    for step in reference[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            raise ConfigError(f"the reference {reference!r} leads nowhere")
        found = found[name]
    return found


def _merged(one: Mapping[str, Any], other: Any) -> dict[str, Any]:
    """What satisfies both; where they say different things of one keyword, with a note that nobody can judge."""
    if not isinstance(other, Mapping):
        return dict(one) if other is True else {**one, "not": {}}
    merged = {**other, **one}
    for name in sorted((one.keys() & other.keys()) - _SILENT):
        if one[name] == other[name]:
            continue
        if name == "properties":
            both = one[name].keys() & other[name].keys()
            shared = {each: {"allOf": [one[name][each], other[name][each]]} for each in both}
            merged[name] = {**other[name], **one[name], **shared}
        elif name == "required":
            merged[name] = [*one[name], *other[name]]
        else:
            merged[_CONFLICT] = [*merged.get(_CONFLICT, ()), [name, one[name], other[name]]]
    return merged


_CONFLICT: Final = "allOf of the same keyword"
_WIDENING: Final = ("patternProperties",)
"""By which more may be written than the rules see."""

_SILENT: Final = frozenset({
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly",
    "discriminator", "externalDocs", "uniqueItems", "example", "$defs", "definitions",
})  # fmt: skip
"""What constrains nothing that a reader would refuse."""


def _constraining(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in schema.items() if name not in _SILENT and not name.startswith("x-")}


def _values(schema: Any) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _is_of(value: Any, schema: Any) -> bool:
    """Whether a value is of a type without bounds of its own; with any, whoever asks must say so."""
    kinds: dict[str, Any] = {
        "string": str, "integer": int, "number": int | float, "boolean": bool, "null": type(None), "array": list,
        "object": dict,
    }  # fmt: skip
    kind = schema.get("type")
    if kind not in kinds or set(_constraining(schema)) - {"type", "maxLength", "minLength"}:
        return False
    if isinstance(value, bool) != (kind == "boolean") or not isinstance(value, kinds[kind]):
        return False
    length = len(value) if isinstance(value, str) else 0
    return bool(schema.get("minLength", 0) <= length <= schema.get("maxLength", length))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _shown(values: list[Any]) -> str:
    shown = ", ".join(_text(each)[:40] for each in values[:5])
    return shown if len(values) <= 5 else f"{shown} and {len(values) - 5} more"


def _distance(writes: Any, reads: Any, found: list[Broken]) -> tuple[bool, int]:
    """How far an alternative is from what is written: of another type, or with so much broken."""
    return writes.get("type") != reads.get("type"), len(found)
