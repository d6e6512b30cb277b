"""Configuration for people and editors: what is in force, without its secrets, and what could be."""

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter

MASK: Final = "**********"
SECRET: Final = re.compile(r"(?i)(password|passwd|secret|token|credential|(^|[_.-])key$)")
"""Names of fields and options whose values are nobody's to see, whatever their type."""
LOGIN: Final = re.compile(r"(://)[^/\s'\"]*@")
OPTION: Final = re.compile(r"([?&])([^=&#\s]+)=([^&#\s]*)")


def shown(kind: Any, value: Any) -> Any:
    """A section as plain data, with its secrets masked."""
    return _masked(TypeAdapter(kind).dump_python(value, mode="json"))


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {str(key): _masked(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner, name) for inner in value]
    if value not in {None, ""} and SECRET.search(name):
        return MASK
    if isinstance(value, str) and "://" in value:
        return OPTION.sub(_masked_option, LOGIN.sub(rf"\1{MASK}@", value))
    return value


def _masked_option(found: re.Match[str]) -> str:
    before, name, value = found.groups()
    return f"{before}{name}={MASK if SECRET.search(name) else value}"


def schema(kinds: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON Schema of `config.yaml` with these sections, for editors."""
    names = list(kinds)
    inputs = [(name, "validation", TypeAdapter(kinds[name])) for name in names]
    sections, shared = TypeAdapter.json_schemas(inputs)  # type: ignore[arg-type]
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "config.yaml",
        "type": "object",
        "properties": {name: sections[name, "validation"] for name in names},
        "patternProperties": {"^x-": {}},
        "additionalProperties": False,
        **shared,
    }
    _close(whole)
    return whole


def _close(part: Any) -> None:
    """Fields that are not named are refused, so an editor should say so too."""
    if isinstance(part, dict):
        if isinstance(part.get("properties"), dict):
            part.setdefault("additionalProperties", False)
        for inner in part.values():
            _close(inner)
    elif isinstance(part, list):
        for inner in part:
            _close(inner)
