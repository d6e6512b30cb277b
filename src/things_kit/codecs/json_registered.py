"""JSON whose schema is in a registry."""

import json
from collections.abc import Callable
from typing import Any, Final

from things_kit.codecs.json_schema import Schemas as JsonSchemas
from things_kit.codecs.json_schema import rewrite
from things_kit.codecs.registry import Schemas, Subject, framed
from things_kit.codecs.subjects import Naming, check_registered, identity_of, subject_name
from things_kit.messaging.codec import Encode
from things_kit.messaging.topic import Topic

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
_PREFIX: Final = "#/definitions/"


def registered_encoder(
    registry: Schemas, naming: Naming | None, topic: Topic[Any], encode: Callable[[Any], bytes]
) -> Encode:
    """Writes the id of its schema before each value."""
    check_registered(registry, topic)
    all_subjects = subjects(naming, topic)
    by_class = (
        {kind: all_subjects[value] for value, kind in topic.kinds.items()} if topic.by is not None else {}
    )
    only = all_subjects.get(None)

    def write(payload: Any) -> tuple[bytes, dict[str, str]]:
        subject = only or by_class[type(payload)]
        return framed(identity_of(registry, subject, topic)) + encode(payload), {}

    return write


def subjects(naming: Naming | None, topic: Topic[Any]) -> dict[str | None, Subject]:
    """What a topic registers, by the header's value."""
    found: dict[str | None, Subject] = {}
    for value, kind in topic.kinds.items():
        schemas = JsonSchemas(_PREFIX)
        root = schemas.of(kind)
        name = str(root.get("$ref", "")).removeprefix(_PREFIX)
        others = dict(schemas.components)
        whole = (
            dict(others.pop(name, {}))
            if name and f"{_PREFIX}{name}" not in json.dumps(schemas.components)
            else root
        )
        if whole is root:
            others = schemas.components
        document = {"$schema": DRAFT, **rewrite(whole, {})}
        if others:
            document["definitions"] = others
        record = name or getattr(kind, "__name__", "value")
        found[value] = Subject(subject_name(naming, topic, record), json.dumps(document), "JSON")
    return found
