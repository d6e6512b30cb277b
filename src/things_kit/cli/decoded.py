"""Values as a registry's schemas read them, for `tail`, `dlq show` and `bridge` with `--registry`."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeAlias

import msgspec
import typer

from things_kit.codecs.framed import unframed
from things_kit.codecs.registry import Registry
from things_kit.codecs.schemas import Away, Stored
from things_kit.messaging.errors import ThingsKitError
from things_kit.messaging.message import Message

PATIENCE: Final = 5.0
"""Seconds for which the registry is waited for: whoever looks sees the value as it is instead."""

UNKNOWN: Final = 1.0
"""Seconds for which it may not know an id: what is looked at was published before."""

AGAIN: Final = 30.0
"""Seconds for which it is not asked again after it was away: each message would wait for it anew."""

RegistryUrl: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="URL",
        help="A schema registry: show values as its schemas read them.",
        show_default=False,
    ),
]


class Decoded(msgspec.Struct, frozen=True):
    """What became of a value: its JSON, or why it could not be decoded; neither where there was nothing to decode."""

    json: bytes | None = None
    problem: str | None = None


AS_IT_IS: Final = Decoded()


class Decoding:
    """Reads values that have the id of a schema before them; those of one schema by one reader."""

    def __init__(self, url: str) -> None:
        self._registry = Registry(url, register=False)
        self._readers: dict[int, Callable[[bytes], Any]] = {}
        self._away: str | None = None
        self._asked_again = 0.0

    async def of(self, message: Message) -> Decoded:
        """A message's value. What cannot be decoded has the reason, a sentence."""
        try:
            identity, start = unframed(message.value)
        except ValueError as error:
            return AS_IT_IS if _is_text(message.value) else Decoded(problem=str(error))
        try:
            reader = await self._reader(identity)
            return Decoded(json=msgspec.json.encode(reader(message.value[start:])))
        except Exception as error:  # noqa: BLE001 - bytes of anybody, read by schemas of anybody
            return Decoded(problem=_reason(error, identity))

    async def _reader(self, identity: int) -> Callable[[bytes], Any]:
        if identity not in self._readers:
            await self._get(identity)
            stored = self._registry.stored(identity)
            assert stored is not None  # noqa: S101 - else `get` had raised
            self._readers[identity] = _reader_of(stored)
        return self._readers[identity]

    async def _get(self, identity: int) -> None:
        now = asyncio.get_running_loop().time
        if self._away is not None and now() < self._asked_again:
            raise Away(self._away)
        self._away = None
        try:
            async with asyncio.timeout(PATIENCE):
                await self._registry.get(identity, UNKNOWN)
        except (TimeoutError, Away) as error:
            self._away, self._asked_again = _reason(error, identity), now() + AGAIN
            raise


async def decoded(decoding: Decoding | None, message: Message) -> Decoded:
    """The same where somebody may have asked for it."""
    return AS_IT_IS if decoding is None else await decoding.of(message)


def _reader_of(stored: Stored) -> Callable[[bytes], Any]:
    if stored.kind == "JSON":
        return msgspec.json.decode
    if stored.kind != "AVRO":
        raise ValueError(f"its schema is {stored.kind}, which is read by generated classes alone")
    from things_kit.codecs.avro import read_plain  # noqa: PLC0415 - fastavro may not be installed
    from things_kit.codecs.avro_parsed import parsed_schema  # noqa: PLC0415 - as above

    schema = parsed_schema(stored.schema, stored.imported)
    return lambda value: read_plain(value, schema)


def _reason(error: Exception, identity: int) -> str:
    if isinstance(error, TimeoutError):
        return f"the registry did not tell the schema {identity} within {PATIENCE:g} s"
    if isinstance(error, Away | ThingsKitError):
        return str(error)
    return f"schema {identity}: {error}"


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
