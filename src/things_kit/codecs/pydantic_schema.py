"""Pydantic's JSON schemas, with what it checks and leaves out of them. Imported by who has a type of its."""

from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema

from things_kit.codecs.json_schema import FLOAT_KEY, INT_KEY, ZONED, Schema

_KEYS: Final = {"integer": INT_KEY, "number": FLOAT_KEY}


class Complete(GenerateJsonSchema):
    """Says what keys that are numbers look like, which times have a zone, and that something is in the past or to come."""

    def dict_schema(self, schema: Any) -> Schema:
        """A mapping: its keys are text in JSON."""
        found: Schema = super().dict_schema(schema)
        keys = self.generate_inner(schema["keys_schema"]) if "keys_schema" in schema else {}
        pattern = _KEYS.get(keys.pop("type", ""))
        keys.pop("title", None)
        if pattern is not None:
            bounds = {"contentSchema": keys} if keys else {}
            found["propertyNames"] = {"type": "string", "pattern": pattern, **bounds}
        return found

    def datetime_schema(self, schema: Any) -> Schema:
        """A point in time."""
        return {**super().datetime_schema(schema), **_constraints(schema)}

    def time_schema(self, schema: Any) -> Schema:
        """A time of day."""
        return {**super().time_schema(schema), **_constraints(schema)}

    def date_schema(self, schema: Any) -> Schema:
        """A day."""
        return {**super().date_schema(schema), **_constraints(schema)}


def _constraints(schema: Any) -> Schema:
    """What JSON schema has no word for is in an annotation: who compares it sees that it changed."""
    zone = schema.get("tz_constraint")
    found: Schema = {}
    if zone in {"aware", "naive"}:
        found = {"pattern": ZONED} if zone == "aware" else {"not": {"pattern": ZONED}}
    left = {name: str(schema[name]) for name in ("now_op", "le", "ge", "lt", "gt") if name in schema}
    if isinstance(zone, int):
        left["tz_constraint"] = str(zone)
    return {**found, **({"contentSchema": {"x-pydantic": left}} if left else {})}
