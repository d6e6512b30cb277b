"""JSON whose schema is in a registry."""

import json
from collections.abc import Mapping
from typing import Any, Final

from things_kit.codecs.framed import Write, by_class, framed_writer
from things_kit.codecs.json_schema import Schemas as JsonSchemas
from things_kit.codecs.json_schema import references_in, rewrite
from things_kit.codecs.schemas import Imported, Schemas, Subject
from things_kit.codecs.subjects import Naming, check_registered, subject_name
from things_kit.messaging.codec import Encode
from things_kit.messaging.topic import Topic

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
_PREFIX: Final = "#/definitions/"

References = Mapping[str, Any]
"""Types whose schemas are registered by themselves, by their subjects."""


def registered_encoder(
    registry: Schemas, naming: Naming | None, references: References | None, topic: Topic[Any], encode: Write
) -> Encode:
    """Writes the id of its schema before each value."""
    check_registered(registry, topic)
    registered = subjects(naming, references, topic)
    return by_class(
        topic, {value: framed_writer(registry, each, topic, encode) for value, each in registered.items()}
    )


def subjects(
    naming: Naming | None, references: References | None, topic: Topic[Any]
) -> dict[str | None, Subject]:
    """What a topic registers, by the header's value. Raises TypeError for references that cannot be."""
    elsewhere = _Elsewhere(references or {})
    found: dict[str | None, Subject] = {}
    for value, kind in topic.kinds.items():
        record, document = elsewhere.document(kind)
        name = subject_name(naming, topic, record or getattr(kind, "__name__", "value"))
        found[value] = Subject(name, json.dumps(document), "JSON", *elsewhere.imports(document))
    return found


class _Elsewhere:
    """Types that have a document of their own, to which others refer as `Address.json`."""

    def __init__(self, references: References) -> None:
        self._homes: dict[str, tuple[str, Any]] = {}
        for subject, kind in references.items():
            name = str(JsonSchemas(_PREFIX).of(kind).get("$ref", "")).removeprefix(_PREFIX)
            if not name:
                raise TypeError(
                    f"the reference {subject!r}: it is no named type, so that nothing can refer to it"
                )
            if f"{name}.json" in self._homes:
                raise TypeError(f"the reference {subject!r}: another one has the name {name!r}")
            self._homes[f"{name}.json"] = subject, kind

    def document(self, kind: Any) -> tuple[str, dict[str, Any]]:
        """The name and the schema of a type, in which the others have their names alone."""
        schemas = JsonSchemas(
            _PREFIX, {each: name for name, (_, each) in self._homes.items() if each != kind}
        )
        root = schemas.of(kind)
        name = str(root.get("$ref", "")).removeprefix(_PREFIX)
        others = dict(schemas.components)
        if name and f"{_PREFIX}{name}" not in json.dumps(others):  # else it is in itself
            root = dict(others.pop(name, {}))
        document = {"$schema": DRAFT, **rewrite(root, {})}
        if others:
            document["definitions"] = others
        return name, document

    def imports(self, document: Any) -> tuple[tuple[str, ...], tuple[Imported, ...]]:
        """The names that a schema refers to, and all that it needs for them."""
        found: dict[str, Imported] = {}
        names = self._used(document)
        for name in names:
            self._collect(name, found, ())
        return names, tuple(found.values())

    def _collect(self, name: str, found: dict[str, Imported], within: tuple[str, ...]) -> None:
        if name in found:
            return
        if name in within:
            raise TypeError(f"references= has schemas that refer to one another: {' and '.join(within)}")
        subject, kind = self._homes[name]
        document = self.document(kind)[1]
        names = self._used(document)
        for each in names:
            self._collect(each, found, (*within, name))
        found[name] = Imported(name, subject, json.dumps(document), names)

    def _used(self, document: Any) -> tuple[str, ...]:
        return tuple(sorted({*references_in(document)} & self._homes.keys()))
