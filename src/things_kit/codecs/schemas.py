"""What codecs ask schema registries, in Confluent's API: which schema has which id, asked for once."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from urllib.parse import quote

from things_kit.messaging.errors import BrokerUnavailable, ConfigError, DecodeError

PATIENCE: Final = 30.0
"""Seconds for which a registry may be away when a topic is prepared, and an id be unknown to it."""

MOST_IMPORTED: Final = 200
"""Schemas that one schema may need, with those that they need themselves."""

SchemaType: TypeAlias = Literal["AVRO", "JSON", "PROTOBUF"]
Compatibility: TypeAlias = Literal[
    "NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"
]


class Imported(NamedTuple):
    """A schema that others refer to.

    Attributes:
        name: What they call it: the full name of an Avro type, the path of a Protobuf file.
        subject: Where it is registered.
        schema: Its text.
        imports: The names of those that it refers to itself.
    """

    name: str
    subject: str
    schema: str
    imports: tuple[str, ...] = ()


class Subject(NamedTuple):
    """What a topic registers: a schema, under a name.

    Attributes:
        name: The subject's.
        schema: Its text.
        kind: What it is written in.
        imports: The names of those that it refers to.
        imported: All that it needs, each after those that it needs itself.
    """

    name: str
    schema: str
    kind: SchemaType
    imports: tuple[str, ...] = ()
    imported: tuple[Imported, ...] = ()

    def with_imported(self) -> "list[Subject]":
        """It, and before it the subjects of all that it needs."""
        before = [
            Subject(each.subject, each.schema, self.kind, each.imports, self.imported[:place])
            for place, each in enumerate(self.imported)
        ]
        return [*before, self]


class Stored(NamedTuple):
    """A schema of the registry, and the texts of those that it needs, each after those that it needs itself."""

    schema: str
    kind: str
    imported: tuple[str, ...] = ()


Reference: TypeAlias = Mapping[str, Any]
"""How a registry says that a schema names another one: `name`, `subject`, `version`."""

_VersionOf: TypeAlias = Callable[[Imported, SchemaType, list[Reference]], Awaitable[int]]


class Answer(NamedTuple):
    """What a registry said."""

    status: int
    body: Any


class Away(Exception):
    """The registry cannot be reached, or cannot answer now."""


class Schemas:
    """What registries have in common: everything but how one is asked."""

    def __init__(self, *, register: bool = True, compatibility: Compatibility | None = None) -> None:
        self._register = register
        self._compatibility = compatibility
        self._ids: dict[Subject, int] = {}
        self._versions: dict[tuple[Imported, tuple[int, ...]], int] = {}
        self._stored: dict[int, Stored] = {}
        self._imported: dict[tuple[str, int], tuple[str, tuple[Reference, ...]]] = {}
        self._ours: dict[int, str] = {}
        self._unknown: dict[int, float] = {}

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """One question. Raises Away, and ConfigError for what waiting cannot mend."""
        raise NotImplementedError

    # --- what codecs ask while they encode and decode

    def id_of(self, subject: Subject) -> int | None:
        """The id of a schema; None before `prepare`."""
        return self._ids.get(subject)

    def stored(self, identity: int) -> Stored | None:
        """The schema of an id; None where it must be fetched first."""
        return self._stored.get(identity)

    def fetch(self, identity: int) -> Awaitable[None]:
        """Get the schema of an id: for `Unprepared`. Raises DecodeError if it stays unknown, Away."""
        return _Fetch(self, identity)

    # --- preparing

    async def prepare(self, subject: Subject) -> int:
        """The id of a schema, registered where it is missing and that is wanted.

        Raises:
            BrokerUnavailable: The registry was away for 30 seconds.
            ConfigError: It does not let us in, or refuses the schema, or does not have it and must not be given it.
        """
        known = self._ids.get(subject)
        if known is not None:
            return known
        identity = await self._patiently(subject)
        if self._ours.setdefault(identity, subject.schema) != subject.schema:
            raise ConfigError(f"{self!r} gave {subject.name!r} the id {identity}, which has another schema")
        imported = tuple(each.schema for each in subject.imported)
        self._stored.setdefault(identity, Stored(subject.schema, subject.kind, imported))
        self._ids[subject] = identity
        return identity

    async def _patiently(self, subject: Subject) -> int:
        loop, wait = asyncio.get_running_loop(), 0.1
        ends = loop.time() + PATIENCE
        while True:
            try:
                return await self._identity(subject)
            except Away as away:
                if loop.time() + wait >= ends:
                    raise BrokerUnavailable(
                        f"{self!r} was away for {PATIENCE:g} s: {away}"
                    ) from away.__cause__
            await asyncio.sleep(wait * (1 + random.random() / 4))  # noqa: S311 - jitter is no secret
            wait = min(2 * wait, 5.0)

    async def _identity(self, subject: Subject) -> int:
        """The id of a schema; those that it refers to are looked up first, as it says their versions."""
        references = await self._references(subject, self._version)
        body = _body(subject.schema, subject.kind, references)
        return _number(self, await self._looked_up(subject.name, body), "id")

    async def _references(self, subject: Subject, version_of: _VersionOf) -> list[Reference]:
        """What a schema says of those that it refers to, whose versions are told one after the other."""
        known: dict[str, Reference] = {}
        for each in subject.imported:
            references = [known[name] for name in each.imports]
            version = await version_of(each, subject.kind, references)
            known[each.name] = {"name": each.name, "subject": each.subject, "version": version}
        return [known[name] for name in subject.imports]

    async def _version(self, imported: Imported, kind: SchemaType, references: list[Reference]) -> int:
        key = imported, tuple(each["version"] for each in references)
        if key not in self._versions:
            body = _body(imported.schema, kind, references)
            found = await self._looked_up(imported.subject, body)
            if "version" not in found:  # which a registry need not say when it registers
                found = await self._looked_up(imported.subject, body)
            self._versions[key] = _number(self, found, "version")
        return self._versions[key]

    async def _looked_up(self, name: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the registry says of a schema. Looked up first, so that who may only read can publish."""
        where = f"subjects/{quote(name, safe='')}"
        found = await self.ask("POST", where, body)
        if found.status == 404:
            if not self._register:
                raise ConfigError(f"{self!r} does not have the schema of {name!r}, and register=False")
            is_new = isinstance(found.body, dict) and found.body.get("error_code") == 40401
            found = await self.ask("POST", f"{where}/versions", body)
            if found.status == 200 and is_new and self._compatibility is not None:
                await self._set_compatibility(name, self._compatibility)
        if found.status != 200:
            raise ConfigError(f"{self!r} refused the schema of {name!r}: {_said(found)}")
        return found.body if isinstance(found.body, dict) else {}

    async def _set_compatibility(self, name: str, level: str) -> None:
        answer = await self.ask("PUT", f"config/{quote(name, safe='')}", {"compatibility": level})
        if answer.status != 200:
            raise ConfigError(f"{self!r} refused compatibility={level!r} of {name!r}: {_said(answer)}")

    # --- for people

    async def compatible(self, subject: Subject) -> tuple[bool | None, str]:
        """Whether a schema may follow the latest of its subject, and why not; None where there is none. Raises Away.

        Nothing is registered for it. What the schema refers to is the latest of its subject where it is new itself.
        """
        references = await self._references(subject, self._version_there)
        missing = next((each["subject"] for each in references if not each["version"]), None)
        if missing is not None:
            if await self.latest(subject.name) is None:
                return None, "nothing is registered"
            return False, f"it refers to {missing!r}, of which nothing is registered yet"
        where = f"compatibility/subjects/{quote(subject.name, safe='')}/versions/latest?verbose=true"
        answer = await self.ask("POST", where, _body(subject.schema, subject.kind, references))
        if answer.status == 404:
            return None, "nothing is registered"
        if answer.status != 200 or not isinstance(answer.body, dict):
            raise ConfigError(f"{self!r} did not compare the schema of {subject.name!r}: {_said(answer)}")
        return bool(answer.body.get("is_compatible")), "; ".join(map(str, answer.body.get("messages") or ()))

    async def _version_there(self, imported: Imported, kind: SchemaType, references: list[Reference]) -> int:
        """The version of a schema, or the latest of its subject where it is new; 0 where that has none."""
        if all(each["version"] for each in references):
            body = _body(imported.schema, kind, references)
            found = await self.ask("POST", f"subjects/{quote(imported.subject, safe='')}", body)
            if found.status == 200:
                return _number(self, found.body, "version")
        latest = await self.latest(imported.subject)
        return 0 if latest is None else _number(self, latest, "version")

    async def latest(self, name: str) -> dict[str, Any] | None:
        """The latest schema of a subject, as the registry tells it; None where there is none. Raises Away."""
        answer = await self.ask("GET", f"subjects/{quote(name, safe='')}/versions/latest")
        return answer.body if answer.status == 200 and isinstance(answer.body, dict) else None

    # --- fetching

    async def get(self, identity: int, patience: float | None = None) -> None:
        """Get the schema of an id, once, which may stay unknown for so many seconds (30). See `fetch`."""
        loop = asyncio.get_running_loop()
        ends, wait = loop.time() + (PATIENCE if patience is None else patience), 0.2
        while identity not in self._stored:
            if self._unknown.get(identity, 0.0) > loop.time():
                raise DecodeError(f"{self!r} has no schema {identity}")
            answer = await self.ask("GET", f"schemas/ids/{identity}")
            if answer.status == 200:
                answer = await self._keep(identity, answer)
            if answer.status not in {200, 404}:
                raise ConfigError(f"{self!r} did not tell the schema {identity}: {_said(answer)}")
            if answer.status == 404 and loop.time() + wait >= ends:
                self._unknown[identity] = loop.time() + PATIENCE
            elif answer.status == 404:
                await asyncio.sleep(wait)
                wait = min(2 * wait, 5.0)

    async def _keep(self, identity: int, answer: Answer) -> Answer:
        """Keep a schema with all that it refers to. Returns its answer, or the one that says that something is missing."""
        schema, references = _told(answer.body)
        imported: dict[tuple[str, int], str] = {}
        missing = await self._import(references, imported, set())
        if missing is not None:
            return missing
        kind = str(answer.body.get("schemaType", "AVRO"))
        self._stored[identity] = Stored(schema, kind, tuple(dict.fromkeys(imported.values())))
        return answer

    async def _import(
        self, references: Sequence[Reference], found: dict[tuple[str, int], str], begun: set[tuple[str, int]]
    ) -> Answer | None:
        """Get what is referred to, each after those that it needs itself. Returns an answer that is none."""
        for reference in references:
            place = str(reference.get("subject")), _number(self, reference, "version")
            if place in begun:
                continue
            begun.add(place)
            if len(begun) > MOST_IMPORTED:
                raise DecodeError(f"a schema of {self!r} needs more than {MOST_IMPORTED} others")
            if place not in self._imported:
                answer = await self.ask("GET", f"subjects/{quote(place[0], safe='')}/versions/{place[1]}")
                if answer.status != 200:
                    return answer
                self._imported[place] = _told(answer.body)
            schema, inner = self._imported[place]
            missing = await self._import(inner, found, begun)
            if missing is not None:
                return missing
            found[place] = schema
        return None


class _Fetch:
    """Something to await that leaves nothing behind if nobody does."""

    def __init__(self, schemas: Schemas, identity: int) -> None:
        self._schemas = schemas
        self._identity = identity

    def __await__(self) -> Generator[Any, None, None]:
        return self._schemas.get(self._identity).__await__()


def _body(schema: str, kind: SchemaType, references: Sequence[Reference]) -> dict[str, Any]:
    body: dict[str, Any] = {"schema": schema}
    if kind != "AVRO":
        body["schemaType"] = kind
    if references:
        body["references"] = list(references)
    return body


def _told(body: Any) -> tuple[str, tuple[Reference, ...]]:
    """The text of a schema and what it refers to. Raises DecodeError for an answer without."""
    schema = body.get("schema") if isinstance(body, dict) else None
    if not isinstance(schema, str):
        raise DecodeError("the registry's answer has no schema")
    references = body.get("references") or ()
    return schema, tuple(each for each in references if isinstance(each, dict))


def _number(schemas: Schemas, body: Any, name: str) -> int:
    number = body.get(name) if isinstance(body, dict) else None
    if isinstance(number, bool) or not isinstance(number, int):
        raise ConfigError(f"{schemas!r} answered without {name!r}: is it a schema registry?")
    if not 0 <= number < 1 << 32:  # an id has four bytes in a value
        raise ConfigError(f"{schemas!r} answered with the {name} {number}, which can be none")
    return number


def _said(answer: Answer) -> str:
    message = answer.body.get("message") if isinstance(answer.body, dict) else None
    return f"{answer.status} {str(message or '').splitlines()[0][:300] if message else ''}".strip()
