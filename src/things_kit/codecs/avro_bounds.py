"""Arrays of nothing: a few bytes may say that they have a billion items, which no reader can refuse in time."""

from collections.abc import Iterator, Mapping
from typing import Any


def has_boundless_array(schema: Any) -> bool:
    """Whether a parsed schema has an array whose items take no bytes, so that a value's size bounds nothing."""
    parts = list(_parts(schema))
    named = {part["name"]: part for part in parts if "name" in part}
    return any(part.get("type") == "array" and _takes_no_bytes(part["items"], named, ()) for part in parts)


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all that is written inside of it."""
    if isinstance(schema, list):
        for each in schema:
            yield from _parts(each)
    elif isinstance(schema, Mapping):
        yield schema
        for name in ("type", "items", "values"):
            yield from _parts(schema.get(name))
        for field in schema.get("fields", ()):
            yield from _parts(field["type"])


def _takes_no_bytes(schema: Any, named: Mapping[str, Any], within: tuple[str, ...]) -> bool:
    if isinstance(schema, str):
        if schema in within:
            return True  # of itself alone
        return schema == "null" or (schema in named and _takes_no_bytes(named[schema], named, within))
    if not isinstance(schema, Mapping):
        return False  # a union says which of its types it is
    kind = schema["type"]
    if kind in ("record", "error"):
        inside = (*within, schema["name"])
        return all(_takes_no_bytes(field["type"], named, inside) for field in schema["fields"])
    if kind == "fixed":
        return bool(schema["size"] == 0)
    return _takes_no_bytes(kind, named, within)
