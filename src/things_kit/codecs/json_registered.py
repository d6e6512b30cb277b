"""JSON whose schema is in a registry."""

import json
from typing import Any, Final

from things_kit.codecs.framed import Write, by_class, framed_writer
from things_kit.codecs.json_schema import Schemas as JsonSchemas
from things_kit.codecs.json_schema import rewrite
from things_kit.codecs.schemas import Schemas, Subject
from things_kit.codecs.subjects import Naming, check_registered, subject_name
from things_kit.messaging.codec import Encode
from things_kit.messaging.topic import Topic

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
_PREFIX: Final = "#/definitions/"


def registered_encoder(registry: Schemas, naming: Naming | None, topic: Topic[Any], encode: Write) -> Encode:
    """Writes the id of its schema before each value."""
    check_registered(registry, topic)
    registered = subjects(naming, topic)
    return by_class(
        topic, {value: framed_writer(registry, each, topic, encode) for value, each in registered.items()}
    )


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
