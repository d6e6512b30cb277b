"""Examples of payloads, made from their schemas."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from things_kit.contracts.compatibility import resolve

DEEPEST: Final = 6
"""Types within one another: what goes round in circles ends there."""

LONGEST: Final = 10
"""Elements of an array."""

_TEXTS: Final = {
    "date-time": "2026-01-31T12:00:00Z", "date": "2026-01-31", "time": "12:00:00Z", "duration": "P1D",
    "uuid": "00000000-0000-4000-8000-000000000000", "decimal": "9.99", "email": "name@example.com",
    "uri": "https://example.com", "base64": "AAEC", "ipv4": "192.0.2.1", "ipv6": "2001:db8::1",
}  # fmt: skip

_BOUNDS: Final = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")


def example(document: Mapping[str, Any], schema: Any, within: tuple[str, ...] = ()) -> Any:
    """A payload that the schema allows, as far as can be seen. A type that has itself in it is there once, if it may be.

    `within` are the types that it is in; beyond `DEEPEST` of them it is null.
    """
    within = (*within, *_names(schema))
    schema = plain(document, schema)
    for name in ("default", "const", "enum", "examples"):
        if name in schema:
            return schema[name][0] if name in {"enum", "examples"} else schema[name]
    if len(within) > DEEPEST:
        return None
    if (parts := schema.get("anyOf") or schema.get("oneOf")) is not None:
        return example(document, min(parts, key=lambda part: _unwanted(part, within)), within)
    if schema.get("type") == "object":
        return _object(document, schema, within)
    if schema.get("type") == "array":
        return [example(document, each, within) for each in _items(schema, within)]
    return _scalar(schema)


def _names(schema: Any) -> list[str]:
    return [schema["$ref"]] if isinstance(schema, Mapping) and "$ref" in schema else []


def _unwanted(schema: Any, within: tuple[str, ...]) -> int:
    """How little a part of a union says: null less than another, what would go round in circles least."""
    if any(name in within for name in _names(schema)):
        return 2
    return int(isinstance(schema, Mapping) and schema.get("type") == "null")


def plain(document: Mapping[str, Any], schema: Any) -> Mapping[str, Any]:
    """A schema without references, and without the `allOf` that carries a default or a description beside one."""
    beside: dict[str, Any] = {}
    while isinstance(schema, Mapping) and ("$ref" in schema or len(schema.get("allOf", ())) == 1):
        beside = {name: each for name, each in schema.items() if name not in {"$ref", "allOf"}} | beside
        schema = resolve(document, schema["$ref"]) if "$ref" in schema else schema["allOf"][0]
    return {**schema, **beside} if isinstance(schema, Mapping) else {}


def _object(document: Mapping[str, Any], schema: Mapping[str, Any], within: tuple[str, ...]) -> Any:
    fields = schema.get("properties", {})
    made = {name: example(document, each, within) for name, each in fields.items()}
    others = schema.get("additionalProperties")
    if not fields and isinstance(others, Mapping) and not _unwanted(others, within):
        name = example(document, {"type": "string"} | schema.get("propertyNames", {}), within)
        made[str(name)] = example(document, others, (*within, "a map"))
    return made


def _items(schema: Mapping[str, Any], within: tuple[str, ...]) -> list[Any]:
    """The schemas of an array's elements: one of each place, or as many as there must be."""
    items, least = schema.get("items", {}), schema.get("minItems", 0)
    places = [*schema.get("prefixItems", items if isinstance(items, list) else [])]
    if places or (not least and (_unwanted(items, within) or len(within) == DEEPEST)):
        return places
    return [items] * min(max(1, least), schema.get("maxItems", LONGEST), LONGEST)


def _scalar(schema: Mapping[str, Any]) -> Any:
    kind = schema.get("type")
    if kind == "string":
        return _text(schema)
    if kind in {"integer", "number"}:
        return _number(schema)
    return True if kind == "boolean" else None


def _text(schema: Mapping[str, Any]) -> str:
    known = _TEXTS.get(schema.get("format", schema.get("contentEncoding", "")))
    if known is not None:
        return known
    least, most = schema.get("minLength", 0), schema.get("maxLength", 1000)
    words = [word[:most].ljust(least, word[-1]) for word in ("text", "12345", "Text", "A1", "1")]
    pattern = schema.get("pattern")
    if pattern is not None:
        with suppress(re.error):
            return next((word for word in words if re.search(pattern, word)), words[0])
    return words[0]


def _number(schema: Mapping[str, Any]) -> Any:
    """One within the bounds: 1 where that is allowed, else as near to a bound as can be."""
    step = schema.get("multipleOf", 1 if schema.get("type") == "integer" else None)
    bounds = [schema[name] for name in _BOUNDS if name in schema]
    near = [
        1,
        *bounds,
        sum(bounds) / max(1, len(bounds)),
        *(each + 1 for each in bounds),
        *(each - 1 for each in bounds),
    ]
    if step is not None:
        near = [(each // step + more) * step for each in [1, *bounds] for more in (0, 1, -1)]
    return next((each for each in near if _is_within(each, schema)), 1)


def _is_within(number: float, schema: Mapping[str, Any]) -> bool:
    return (
        schema.get("minimum", number) <= number <= schema.get("maximum", number)
        and ("exclusiveMinimum" not in schema or number > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or number < schema["exclusiveMaximum"])
    )
