"""Schemas of Avro, ready for fastavro, with those that they refer to."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from things_kit.codecs.avro_bounds import has_boundless_array
from things_kit.codecs.avro_schema import Schema
from things_kit.codecs.schemas import Imported
from things_kit.messaging.errors import ConfigError

try:
    import fastavro
    from fastavro.schema import SchemaParseException, UnknownType
except ImportError as error:
    raise ConfigError('Avro needs fastavro: pip install "things-kit[avro]"') from error

_LARGEST_SCHEMA: Final = 1 << 20
_REFUSED: Final = (SchemaParseException, UnknownType, ValueError, KeyError, AttributeError, TypeError)


def parsed_schema(schema: Schema | Mapping[str, Any], imported: Iterable[Any] = ()) -> Any:
    """A schema, ready for fastavro, and for what it refers to: each after those that it refers to itself.

    Raises:
        TypeError: It is none.
    """
    parsed, named = _parsed(schema, imported)
    return _with_names(parsed, named) if imported else parsed


def _parsed(schema: Any, imported: Iterable[Any]) -> tuple[Any, dict[str, Any]]:
    """As fastavro parses it, and all types that it may name."""
    named: dict[str, Any] = {}
    parsed: Any = None
    try:
        for each in (*imported, schema):
            parsed = fastavro.parse_schema(plain_schema(each), named)
        boundless = has_boundless_array([*named.values(), parsed])
    except _REFUSED as error:
        raise TypeError(f"it is no Avro schema: {error}") from error
    except RecursionError:
        raise TypeError("the Avro schema is nested too deeply") from None
    if boundless:
        raise TypeError(
            "the Avro schema has an array whose items take no bytes: nothing bounds how many are read"
        )
    return parsed, named


def plain_schema(schema: Any) -> Any:
    """A schema out of its JSON, where it is that. Raises TypeError for one that is too large, ValueError for no JSON."""
    if not isinstance(schema, str):
        return schema
    if len(schema) > _LARGEST_SCHEMA:
        raise TypeError("the schema is larger than 1 MiB")
    return json.loads(schema) if schema.lstrip()[:1] in {"{", "[", '"'} else schema


def _with_names(parsed: Any, named: Mapping[str, Any]) -> Any:
    """What is no record does not keep the names that fastavro parsed before it, so they are said again."""
    if isinstance(parsed, list):
        return [_with_names(each, named) for each in parsed]
    parsed = named.get(parsed, parsed) if isinstance(parsed, str) else parsed
    if isinstance(parsed, str):
        return parsed
    return {**parsed, "__fastavro_parsed": True, "__named_schemas": named}


# --- what schemas refer to


class Imports:
    """Schemas that others refer to, by the names of their types.

    Attributes:
        all: Each after those that it refers to itself.
    """

    def __init__(self, schemas: Mapping[str, Schema | Mapping[str, Any]]) -> None:
        """Take schemas by their subjects, in whatever order.

        Raises:
            TypeError: One is no named type, or refers to what is not there.
        """
        self.all: list[Imported] = []
        self._home: dict[str, str] = {}
        waiting = dict(schemas)
        while waiting:
            problems = {subject: self._added(subject, schema) for subject, schema in waiting.items()}
            waiting = {subject: waiting[subject] for subject, problem in problems.items() if problem}
            if len(waiting) == len(problems):
                raise TypeError(f"the reference {next(iter(waiting))!r}: {problems[next(iter(waiting))]}")

    def _added(self, subject: str, schema: Any) -> Exception | None:
        """Take one, or say why it cannot be taken yet."""
        try:
            self._add(subject, schema)
        except TypeError as error:
            return error
        return None

    def _add(self, subject: str, schema: Any) -> None:
        parsed, named = _parsed(schema, self.texts)
        if not isinstance(parsed, dict) or "name" not in parsed:
            raise TypeError("it is no named type, so that nothing can refer to it")
        name = str(parsed["name"])
        text = json.dumps(plain_schema(schema))
        self.all.append(Imported(name, subject, text, self.of(schema)[0]))
        for defined in named.keys() - self._home.keys():
            self._home[defined] = name

    @property
    def texts(self) -> list[str]:
        """The schemas, each after those that it refers to itself."""
        return [each.schema for each in self.all]

    def of(self, schema: Schema | Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Imported, ...]]:
        """The names that a schema refers to, and all that it needs for them."""
        used = {*_type_names(_parsed(schema, self.texts)[0])} & self._home.keys()
        names = tuple(sorted({self._home[name] for name in used}))
        wanted, needed = set(names), list[Imported]()
        for each in reversed(self.all):
            if each.name in wanted:
                wanted.update(each.imports)
                needed.insert(0, each)
        return names, tuple(needed)


def _type_names(schema: Any) -> Iterator[str]:
    """The names of types that a parsed schema refers to."""
    if isinstance(schema, str):
        yield schema
    elif isinstance(schema, list):
        for each in schema:
            yield from _type_names(each)
    else:
        for part in ("type", "items", "values"):
            if part in schema:
                yield from _type_names(schema[part])
        for field in schema.get("fields", ()):
            yield from _type_names(field["type"])
