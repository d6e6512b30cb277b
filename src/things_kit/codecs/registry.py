"""Schema registries that speak Confluent's API: which schema has which id, asked for once."""

import asyncio
import random
from collections.abc import Awaitable, Generator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from urllib.parse import quote

import msgspec

from things_kit.messaging.errors import BrokerUnavailable, ConfigError, DecodeError

PATIENCE: Final = 30.0
"""Seconds for which a registry may be away when a topic is prepared, and an id be unknown to it."""

SLOW: Final = 10.0
"""Seconds within which one answer must come."""

LARGEST: Final = 4 << 20
"""Bytes of the largest answer that is read."""

MAGIC: Final = 0
"""The first byte of a value in Confluent's format; the id of the schema follows in four."""

SchemaType: TypeAlias = Literal["AVRO", "JSON", "PROTOBUF"]
Compatibility: TypeAlias = Literal[
    "NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"
]


class Reference(NamedTuple):
    """Another schema that a schema names, and where it is registered."""

    name: str
    subject: str
    version: int


class Subject(NamedTuple):
    """What a topic registers: a schema, under a name."""

    name: str
    schema: str
    kind: SchemaType
    references: tuple[Reference, ...] = ()


class Stored(NamedTuple):
    """A schema of the registry."""

    schema: str
    kind: str


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
        self._versions: dict[Subject, int] = {}
        self._stored: dict[int, Stored] = {}
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
        self._stored.setdefault(identity, Stored(subject.schema, subject.kind))
        self._ids[subject] = identity
        return identity

    async def version_of(self, subject: Subject) -> int:
        """The version of a schema that was prepared, for those that refer to it. Raises as `prepare` does."""
        await self.prepare(subject)
        return self._versions.get(subject, 1)

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
        """Looked up first, so that who may only read can publish."""
        where, body = f"subjects/{quote(subject.name, safe='')}", _body(subject)
        found = await self.ask("POST", where, body)
        if found.status == 200:
            self._versions[subject] = _number(self, found.body, "version")
            return _number(self, found.body, "id")
        if found.status != 404:
            raise ConfigError(f"{self!r} refused the schema of {subject.name!r}: {_said(found)}")
        if not self._register:
            raise ConfigError(f"{self!r} does not have the schema of {subject.name!r}, and register=False")
        is_new = isinstance(found.body, dict) and found.body.get("error_code") == 40401
        made = await self.ask("POST", f"{where}/versions", body)
        if made.status != 200:
            raise ConfigError(f"{self!r} refused the schema of {subject.name!r}: {_said(made)}")
        if is_new and self._compatibility is not None:
            await self._set_compatibility(subject.name, self._compatibility)
        return _number(self, made.body, "id")

    async def _set_compatibility(self, name: str, level: str) -> None:
        answer = await self.ask("PUT", f"config/{quote(name, safe='')}", {"compatibility": level})
        if answer.status != 200:
            raise ConfigError(f"{self!r} refused compatibility={level!r} of {name!r}: {_said(answer)}")

    # --- for people

    async def compatible(self, subject: Subject) -> tuple[bool | None, str]:
        """Whether a schema may follow the latest of its subject, and why not; None where there is none. Raises Away."""
        where = f"compatibility/subjects/{quote(subject.name, safe='')}/versions/latest?verbose=true"
        answer = await self.ask("POST", where, _body(subject))
        if answer.status == 404:
            return None, "nothing is registered"
        if answer.status != 200 or not isinstance(answer.body, dict):
            raise ConfigError(f"{self!r} did not compare the schema of {subject.name!r}: {_said(answer)}")
        return bool(answer.body.get("is_compatible")), "; ".join(map(str, answer.body.get("messages") or ()))

    async def latest(self, name: str) -> dict[str, Any] | None:
        """The latest schema of a subject, as the registry tells it; None where there is none. Raises Away."""
        answer = await self.ask("GET", f"subjects/{quote(name, safe='')}/versions/latest")
        return answer.body if answer.status == 200 and isinstance(answer.body, dict) else None

    # --- fetching

    async def get(self, identity: int) -> None:
        """Get the schema of an id, once. See `fetch`."""
        loop = asyncio.get_running_loop()
        ends, wait = loop.time() + PATIENCE, 0.2
        while identity not in self._stored:
            if self._unknown.get(identity, 0.0) > loop.time():
                raise DecodeError(f"{self!r} has no schema {identity}")
            answer = await self.ask("GET", f"schemas/ids/{identity}")
            if answer.status == 200:
                self._keep(identity, answer.body)
            elif answer.status != 404:
                raise ConfigError(f"{self!r} did not tell the schema {identity}: {_said(answer)}")
            elif loop.time() + wait >= ends:
                self._unknown[identity] = loop.time() + PATIENCE
            else:
                await asyncio.sleep(wait)
                wait = min(2 * wait, 5.0)

    def _keep(self, identity: int, body: Any) -> None:
        schema = body.get("schema") if isinstance(body, dict) else None
        if not isinstance(schema, str):
            raise DecodeError(f"{self!r} has no schema in the answer for {identity}")
        self._stored[identity] = Stored(schema, str(body.get("schemaType", "AVRO")))


class _Fetch:
    """Something to await that leaves nothing behind if nobody does."""

    def __init__(self, schemas: Schemas, identity: int) -> None:
        self._schemas = schemas
        self._identity = identity

    def __await__(self) -> Generator[Any, None, None]:
        return self._schemas.get(self._identity).__await__()


class Registry(Schemas):
    """A registry, such as Confluent's, Apicurio, Redpanda or Karapace, over HTTP.

    Args:
        url: Its address, or several of one registry.
        username: For basic authentication, with `password`.
        password: See `username`.
        token: For bearer authentication.
        ca: A file of certificates that are trusted, where the system's are not.
        cert: A file with our own certificate, with `key`.
        key: See `cert`.
        register: Whether schemas that it does not have are registered.
        compatibility: What is set on subjects that this creates.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        ca: str | None = None,
        cert: str | None = None,
        key: str | None = None,
        register: bool = True,
        compatibility: Compatibility | None = None,
    ) -> None:
        super().__init__(register=register, compatibility=compatibility)
        self._urls = [url] if isinstance(url, str) else list(url)
        for each in self._urls:
            if not isinstance(each, str) or not each.startswith(("http://", "https://")):
                raise ConfigError(
                    f"a registry's URL begins with http:// or https://; it is {_display(each)!r}"
                )
        if not self._urls:
            raise ConfigError("a registry needs a URL")
        if token is not None and username is not None:
            raise ConfigError("a registry takes username= and password=, or token=, not both")
        self._login = (username, password or "") if username is not None else None
        self._token = token
        self._files = ca, cert, key

    def __repr__(self) -> str:
        return f"<Registry {', '.join(map(_display, self._urls))}>"

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """See `Schemas.ask`: of several addresses the first that answers."""
        httpx = _httpx()
        last: Exception | None = None
        headers = {"Accept": "application/vnd.schemaregistry.v1+json", "Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        async with httpx.AsyncClient(
            auth=self._login, headers=headers, timeout=SLOW, verify=self._trust(), follow_redirects=False
        ) as client:
            for url in self._urls:
                try:
                    response = await client.request(
                        method,
                        f"{url.rstrip('/')}/{path}",
                        content=None if body is None else msgspec.json.encode(body),
                    )
                except httpx.HTTPError as error:
                    last = Away(f"{_display(url)} cannot be reached: {type(error).__name__}")
                    last.__cause__ = error
                    continue
                if response.status_code != 429 and response.status_code < 500:
                    return self._answer(response)
                last = Away(f"{_display(url)} answered {response.status_code}")
        raise last or Away("it has no address")

    def _answer(self, response: Any) -> Answer:
        status = response.status_code
        if status in {401, 403}:
            raise ConfigError(
                f"{self!r} does not let us in ({status}): check username= and password=, or token="
            )
        if len(response.content) > LARGEST:
            raise ConfigError(f"{self!r} answered with more than {LARGEST} bytes")
        try:
            return Answer(status, msgspec.json.decode(response.content))
        except (msgspec.DecodeError, RecursionError) as error:
            raise ConfigError(
                f"{self!r} answered {status} with what is no JSON: is it a schema registry?"
            ) from error

    def _trust(self) -> Any:
        import ssl  # noqa: PLC0415 - only where somebody is asked

        ca, cert, key = self._files
        if ca is None and cert is None:  # making a context takes long, and plain HTTP needs none
            return any(url.startswith("https") for url in self._urls)
        try:
            context = ssl.create_default_context(cafile=ca)
            if cert is not None:
                context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the certificates of {self!r} cannot be read: {error}") from error
        return context


class MemoryRegistry(Schemas):
    """A registry in this process, for tests: it takes every schema."""

    def __init__(self, *, register: bool = True, compatibility: Compatibility | None = None) -> None:
        super().__init__(register=register, compatibility=compatibility)
        self.subjects: dict[str, list[int]] = {}
        self.schemas: list[dict[str, Any]] = []
        self.levels: dict[str, str] = {}

    def __repr__(self) -> str:
        return "<MemoryRegistry>"

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """See `Schemas.ask`."""
        from urllib.parse import unquote  # noqa: PLC0415 - as little as the rest

        kind, name, *more = [unquote(each) for each in path.split("/")]
        if kind == "config":
            self.levels[name] = str((body or {}).get("compatibility"))
            return Answer(200, dict(body or {}))
        if kind == "schemas":
            number = int(more[0])
            known = 0 < number <= len(self.schemas)
            return Answer(200, self.schemas[number - 1]) if known else Answer(404, {"error_code": 40403})
        if kind != "subjects":
            return Answer(404, {"error_code": 404})
        asked = body or {}
        schema = {"schema": asked.get("schema")}
        schema |= {
            name: asked[name] for name in ("schemaType", "references") if asked.get(name) not in _DEFAULTS
        }
        return self._subject(name, schema, register=bool(more))

    def _subject(self, name: str, schema: dict[str, Any], *, register: bool) -> Answer:
        if not register:
            if name not in self.subjects:
                return Answer(404, {"error_code": 40401})
            for version, number in enumerate(self.subjects[name], 1):
                if self.schemas[number - 1] == schema:
                    return Answer(200, {"id": number, "version": version})
            return Answer(404, {"error_code": 40403})
        if schema not in self.schemas:
            self.schemas.append(schema)
        number = self.schemas.index(schema) + 1
        versions = self.subjects.setdefault(name, [])
        if number not in versions:
            versions.append(number)
        return Answer(200, {"id": number})


_DEFAULTS: Final[tuple[Any, ...]] = (None, "AVRO", [])
"""What need not be said of a schema."""


def framed(identity: int) -> bytes:
    """What goes before a value."""
    return bytes([MAGIC]) + identity.to_bytes(4, "big")


def unframed(value: bytes) -> tuple[int, int]:
    """The id of a value's schema, and where its bytes begin. Raises ValueError for a value that has none."""
    if len(value) < 5:
        raise ValueError(f"it has {len(value)} bytes, too few for the id of a schema")
    if value[0] != MAGIC:
        raise ValueError(f"it begins with the byte {value[0]}, not {MAGIC}: it has no id of a schema")
    return int.from_bytes(value[1:5], "big"), 5


def _body(subject: Subject) -> dict[str, Any]:
    body: dict[str, Any] = {"schema": subject.schema}
    if subject.kind != "AVRO":
        body["schemaType"] = subject.kind
    if subject.references:
        body["references"] = [each._asdict() for each in subject.references]
    return body


def _number(schemas: Schemas, body: Any, name: str) -> int:
    number = body.get(name) if isinstance(body, dict) else None
    if isinstance(number, bool) or not isinstance(number, int):
        raise ConfigError(f"{schemas!r} answered without {name!r}: is it a schema registry?")
    return number


def _said(answer: Answer) -> str:
    message = answer.body.get("message") if isinstance(answer.body, dict) else None
    return f"{answer.status} {str(message or '').splitlines()[0][:300] if message else ''}".strip()


def _display(url: object) -> str:
    """An address without a login."""
    before, at, after = str(url).rpartition("@")
    return f"{before.partition('://')[0]}://{after}" if at else str(url)


def _httpx() -> Any:
    try:
        import httpx  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError('Registry needs httpx: pip install "things-kit[registry]"') from error
    return httpx
