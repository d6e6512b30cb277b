"""Whether a value of one Protobuf message is read as the same by another: fields are known by their numbers.

Everything parses as everything else, so that what would be read as another value is said to be broken.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from things_kit.contracts.compatibility import Broken
from things_kit.contracts.shapes import Protobuf, check
from things_kit.messaging.errors import ConfigError

KEY: Final = "x-protobuf"
"""By which a document has the numbers and types of fields."""

_WIDER: Final[Mapping[str, frozenset[str]]] = {
    "int32": frozenset({"int64"}),
    "uint32": frozenset({"uint64"}),
    "sint32": frozenset({"sint64"}),
    "bool": frozenset({"int32", "int64", "uint32", "uint64"}),
    "enum": frozenset({"int32", "int64"}),
    "string": frozenset({"bytes"}),
}
"""What has the same bytes, and the same value."""


def protobuf_broken(written: Mapping[str, Any], read: Mapping[str, Any]) -> list[Broken]:
    """What of the writer's message the reader's does not take for the same."""
    for each in (written, read):
        _check(each)
    return list(_Comparison(written, read).message(written["message"], read["message"], ""))


def _check(described: Mapping[str, Any]) -> None:
    """Raise ConfigError for what cannot be compared."""
    what = f"{KEY!r} of the document is no schema"
    check(described, Protobuf, what)
    messages, enums = described["messages"], described["enums"]
    if described["message"] not in messages:
        raise ConfigError(f"{what}: it has no message {described['message']!r}")
    for name, fields in messages.items():
        for field in fields.values():
            homes = {"message": messages, "group": messages, "enum": enums}.get(field["type"])
            if homes is not None and field.get("of") not in homes:
                raise ConfigError(
                    f"{what}: it has no {field['type']} {field.get('of')!r}, of which a field of {name!r} is"
                )


class _Comparison:
    def __init__(self, written: Mapping[str, Any], read: Mapping[str, Any]) -> None:
        self._written = written
        self._read = read
        self._assumed: set[tuple[str, str]] = set()

    def message(self, writes: str, reads: str, path: str) -> Iterator[Broken]:
        if (writes, reads) in self._assumed:
            return  # of a recursive type: it holds unless something else breaks it
        self._assumed.add((writes, reads))
        written = self._written["messages"][writes]
        for number, field in self._read["messages"][reads].items():
            where = f"{path}.{field['name']}"
            if number in written:
                yield from self._field(written[number], field, where)
            elif field["label"] == "required":
                yield Broken(where, "it is not written, and is required")

    def _field(self, written: Mapping[str, Any], read: Mapping[str, Any], path: str) -> Iterator[Broken]:
        if written["type"] != read["type"] and read["type"] not in _WIDER.get(written["type"], ()):
            yield Broken(path, f"{written['type']} is written, {read['type']} is read")
        elif (written["label"] == "repeated") != (read["label"] == "repeated"):
            yield Broken(path, f"it is written {written['label']}, and read {read['label']}")
        elif read["label"] == "required" != written["label"]:
            yield Broken(path, "it may be absent, and is required")
        elif written.get("oneof") != read.get("oneof"):
            yield Broken(path, f"its oneof was {written.get('oneof')}, and is {read.get('oneof')}")
        elif read["type"] in {"message", "group"}:
            yield from self.message(written["of"], read["of"], path)
        elif read["type"] == "enum":
            known = self._read["enums"][read["of"]]
            missing = [str(each) for each in self._written["enums"][written["of"]] if each not in known]
            if missing:
                yield Broken(path, f"{', '.join(missing[:5])} is not read")
