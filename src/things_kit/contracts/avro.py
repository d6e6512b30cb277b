"""Whether a value of one Avro schema is read by another, as Avro resolves the two.

As everywhere in this room what cannot be judged is said to be broken: where a union has several types that might be taken
for what is written, all of them must read it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from things_kit.contracts.compatibility import Broken
from things_kit.contracts.shapes import Avro, check
from things_kit.messaging.errors import ConfigError

KEY: Final = "x-avro"
"""By which a document has the schema of the bytes, after those that it refers to."""

_PRIMITIVES: Final = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
_PARTS: Final = {"array": "items", "map": "values"}
_OF_NAMED: Final = {"record": "fields", "error": "fields", "enum": "symbols", "fixed": "size"}
_LOGICAL: Final = ("logicalType", "precision", "scale")
_WIDER: Final[Mapping[str, frozenset[str]]] = {
    "int": frozenset({"long", "float", "double"}),
    "long": frozenset({"float", "double"}),
    "float": frozenset({"double"}),
    "string": frozenset({"bytes"}),
    "bytes": frozenset({"string"}),
}


def avro_broken(written: Sequence[Any], read: Sequence[Any], *, resolved: bool) -> list[Broken]:
    """What of the writer's schema the reader's does not take; each is last, after those that it refers to.

    Args:
        written: The writer's.
        read: The reader's.
        resolved: Whether a value says by which schema it was written.
    """
    writer, reader = _Schema(written), _Schema(read)
    if resolved:
        return _Resolution(writer, reader).broken(writer.root, reader.root, "")
    if (writer.bare(writer.root), writer.bare_named()) == (reader.bare(reader.root), reader.bare_named()):
        return []
    return [
        Broken(
            "", "its Avro schema changed, and without a registry only that by which it was written reads it"
        )
    ]


class _Schema:
    """A schema whose named types stand aside, by their full names."""

    def __init__(self, schemas: Sequence[Any]) -> None:
        self.named: dict[str, dict[str, Any]] = {}
        self.root: Any = None
        check(schemas, Avro, f"{KEY!r} of the document is no schema")
        for each in schemas:
            self.root = self._plain(each, "")

    def _plain(self, schema: Any, space: str) -> Any:
        if isinstance(schema, list):
            return [self._plain(each, space) for each in schema]
        if isinstance(schema, str):
            return schema if schema in _PRIMITIVES else self._known(_full(schema, space))
        kind = schema["type"]
        if not isinstance(kind, str):
            return self._plain(kind, space)
        if kind in _OF_NAMED:
            return self._name(schema, kind, space)
        if kind in _PARTS:
            return {"type": kind, "of": self._plain(_needed(schema, _PARTS[kind], f"type {kind!r}"), space)}
        logical = {name: schema[name] for name in _LOGICAL if name in schema}
        return {"type": kind, **logical} if logical else self._plain(kind, space)

    def _known(self, name: str) -> str:
        if name not in self.named:
            raise ConfigError(f"{KEY!r} of the document is no schema: no type has the name {name!r}")
        return name

    def _name(self, schema: Mapping[str, Any], kind: str, space: str) -> str:
        name = _full(_needed(schema, "name", f"type {kind!r}"), schema.get("namespace", space))
        inside = name.rpartition(".")[0]
        _needed(schema, _OF_NAMED[kind], f"type {name!r}")
        kept = {each: schema[each] for each in ("symbols", "size", *_LOGICAL) if each in schema}
        entry: dict[str, Any] = {"type": kind, "name": name, "aliases": schema.get("aliases", []), **kept}
        if kind == "enum" and "default" in schema:
            entry["default"] = schema["default"]
        self.named[name] = entry  # it may be in itself
        if kind in {"record", "error"}:
            entry["fields"] = [
                {**each, "type": self._plain(each["type"], inside)} for each in schema["fields"]
            ]
        return name

    def of(self, schema: Any) -> Any:
        """The type that a name means."""
        return self.named.get(schema, schema) if isinstance(schema, str) else schema

    def bare(self, schema: Any) -> Any:
        """Without what changes no byte."""
        if isinstance(schema, list):
            return [self.bare(each) for each in schema]
        if not isinstance(schema, Mapping):
            return schema
        kept = {
            name: each for name, each in schema.items() if name not in {"aliases", "default", "doc", "order"}
        }
        if "fields" in kept:
            kept["fields"] = [
                {"name": each["name"], "type": self.bare(each["type"])} for each in kept["fields"]
            ]
        return kept

    def bare_named(self) -> dict[str, Any]:
        """The same of all that have names."""
        return {name: self.bare(each) for name, each in self.named.items()}


class _Resolution:
    def __init__(self, writer: _Schema, reader: _Schema) -> None:
        self._writer = writer
        self._reader = reader
        self._assumed: set[tuple[str, str]] = set()

    def broken(self, writes: Any, reads: Any, path: str) -> list[Broken]:
        """What of the one the other does not take."""
        if isinstance(writes, list):
            return [each for branch in writes for each in self.broken(branch, reads, path)]
        if isinstance(reads, list):
            return self._union(writes, reads, path)
        written, read = self._writer.of(writes), self._reader.of(reads)
        if not self._might_match(writes, reads):
            return [Broken(path, f"{_name(written)} is written, {_name(read)} is read")]
        return self._matching(written, read, path)

    def _matching(self, written: Any, read: Any, path: str) -> list[Broken]:
        """The same of two that are of one kind."""
        if not isinstance(written, Mapping) and not isinstance(read, Mapping):
            return []
        if isinstance(written, Mapping) and "name" in written:
            pair = (written["name"], read["name"])
            if pair in self._assumed:
                return []  # of a recursive type: it holds unless something else breaks it
            self._assumed.add(pair)
            return list(self._named(written, read, path))
        if isinstance(written, Mapping) and "of" in written:
            return self.broken(
                written["of"], read["of"], f"{path}{'[]' if written['type'] == 'array' else '.*'}"
            )
        if written != read:
            return [Broken(path, "it means something else than the number or text that it is written as")]
        return []

    def _union(self, writes: Any, reads: list[Any], path: str) -> list[Broken]:
        taken = [each for each in reads if self._might_match(writes, each)]
        if not taken:
            return [Broken(path, f"{_name(self._writer.of(writes))} is not read")]
        return [found for each in taken for found in self.broken(writes, each, path)]

    def _named(self, written: Mapping[str, Any], read: Mapping[str, Any], path: str) -> Iterator[Broken]:
        if written["type"] == "enum":
            missing = [each for each in written["symbols"] if each not in read["symbols"]]
            if missing and "default" not in read:
                yield Broken(path, f"{', '.join(missing)} is not read")
        elif written["type"] == "fixed":
            if _meaning(written) != _meaning(read):
                yield Broken(path, "its size or its meaning is another")
        else:
            fields = {each["name"]: each for each in written["fields"]}
            for field in read["fields"]:
                names = [field["name"], *field.get("aliases", ())]
                found = next((fields[name] for name in names if name in fields), None)
                if found is not None:
                    yield from self.broken(found["type"], field["type"], f"{path}.{field['name']}")
                elif "default" not in field:
                    yield Broken(f"{path}.{field['name']}", "it is not written, and has no default in Avro")

    def _might_match(self, writes: Any, reads: Any) -> bool:
        """Whether a reader takes the one for the other before it looks inside."""
        written, read = self._writer.of(writes), self._reader.of(reads)
        kinds = [each["type"] if isinstance(each, Mapping) else each for each in (written, read)]
        if isinstance(written, Mapping) and "name" in written:
            return kinds[0] == kinds[1] and _is_named(written["name"], read)
        return kinds[0] == kinds[1] or kinds[1] in _WIDER.get(str(kinds[0]), ())


def _needed(schema: Mapping[str, Any], key: str, what: str) -> Any:
    if key not in schema:
        raise ConfigError(f"{KEY!r} of the document is no schema: the {what} has no {key!r}")
    return schema[key]


def _full(name: str, space: str) -> str:
    return name if "." in name or not space else f"{space}.{name}"


def _is_named(name: str, read: Mapping[str, Any]) -> bool:
    last = name.rpartition(".")[2]
    return last == read["name"].rpartition(".")[2] or bool({name, last} & set(read["aliases"]))


def _meaning(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in schema.items() if name not in {"name", "aliases"}}


def _name(schema: Any) -> str:
    return str(schema.get("name") or schema["type"]) if isinstance(schema, Mapping) else str(schema)
