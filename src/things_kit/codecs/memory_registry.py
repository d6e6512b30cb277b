"""A schema registry in this process, for tests."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from things_kit.codecs.schemas import Answer, Compatibility, Schemas

_DEFAULTS: Final[tuple[Any, ...]] = (None, "AVRO", [])
"""What need not be said of a schema."""

_NO_SUBJECT: Final = Answer(404, {"error_code": 40401, "message": "Subject not found"})
_NO_VERSION: Final = Answer(404, {"error_code": 40402, "message": "Version not found"})
_NO_SCHEMA: Final = Answer(404, {"error_code": 40403, "message": "Schema not found"})
_UNRESOLVED: Final = Answer(422, {"error_code": 42201, "message": "Unresolved reference"})


class MemoryRegistry(Schemas):
    """A registry in this process, for tests: it takes every schema that refers to what it has."""

    def __init__(self, *, register: bool = True, compatibility: Compatibility | None = None) -> None:
        super().__init__(register=register, compatibility=compatibility)
        self.subjects: dict[str, list[int]] = {}
        self.schemas: list[dict[str, Any]] = []
        self.levels: dict[str, str] = {}

    def __repr__(self) -> str:
        return "<MemoryRegistry>"

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """See `Schemas.ask`."""
        asked = dict(body or {})
        match [unquote(each) for each in path.split("/")]:
            case ["config", name]:
                self.levels[name] = str(asked.get("compatibility"))
                return Answer(200, asked)
            case ["schemas", "ids", number]:
                known = 0 < int(number) <= len(self.schemas)
                return Answer(200, self.schemas[int(number) - 1]) if known else _NO_SCHEMA
            case ["subjects", name]:
                return self._look_up(name, _schema(asked))
            case ["subjects", name, "versions"]:
                return self._register_schema(name, _schema(asked))
            case ["subjects", name, "versions", version]:
                return self._version_of(name, version)
        return Answer(404, {"error_code": 404})

    def _look_up(self, name: str, schema: dict[str, Any]) -> Answer:
        if name not in self.subjects:
            return _NO_SUBJECT
        for version, number in enumerate(self.subjects[name], 1):
            if self.schemas[number - 1] == schema:
                return Answer(200, {"id": number, "version": version})
        return _NO_SCHEMA

    def _register_schema(self, name: str, schema: dict[str, Any]) -> Answer:
        for each in schema.get("references", ()):
            if not 0 < each["version"] <= len(self.subjects.get(each["subject"], ())):
                return _UNRESOLVED
        if schema not in self.schemas:
            self.schemas.append(schema)
        number = self.schemas.index(schema) + 1
        versions = self.subjects.setdefault(name, [])
        if number not in versions:
            versions.append(number)
        return Answer(200, {"id": number})

    def _version_of(self, name: str, version: str) -> Answer:
        numbers = self.subjects.get(name)
        if numbers is None:
            return _NO_SUBJECT
        place = len(numbers) if version == "latest" else int(version)
        if not 0 < place <= len(numbers):
            return _NO_VERSION
        number = numbers[place - 1]
        return Answer(200, {"subject": name, "version": place, "id": number, **self.schemas[number - 1]})


def _schema(asked: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"schema": asked.get("schema")}
    more = {name: asked[name] for name in ("schemaType", "references") if asked.get(name) not in _DEFAULTS}
    return {**schema, **more}
