"""Keeps large values in a store, and sends the claim for them."""

import asyncio
import hashlib
import logging
import re
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol, runtime_checkable
from uuid import uuid4

import msgspec

from things_kit.messaging.codec import Unprepared
from things_kit.messaging.errors import ConfigError, DecodeError
from things_kit.messaging.message import Message
from things_kit.messaging.policy import Seconds, seconds
from things_kit.messaging.transform import Applied, Transform

log = logging.getLogger("things_kit.claim_check")

TOKEN: Final = "claim-check"  # noqa: S105 - no secret, but the word in the header
SWEEP: Final = 3600.0
"""Seconds between two looks for claims that are too old."""

_KEY: Final = re.compile(r"\d{4}-\d\d-\d\d/[0-9a-f]{32}")


@runtime_checkable
class Store(Protocol):
    """Where large values are. Keys are a day and a name, `2026-11-30/0123...`; what is raised is an outage."""

    async def put(self, key: str, value: bytes, /) -> None:
        """Keep a value; it is there for good when this returns."""

    async def get(self, key: str, /) -> bytes | None:
        """The value; None where there is none."""

    async def sweep(self, before: datetime, /) -> None:
        """Remove what was put on days before this one."""


class _Claim(msgspec.Struct, forbid_unknown_fields=True):
    """What is sent instead of the value."""

    key: str
    size: int
    sha256: str


class claim_check(Transform):  # noqa: N801 - it is used as a function
    """A transform that puts large values into a store before the message is published, and sends a claim.

    Claims go by age, never because a message was acknowledged: there may be other groups, retries and dead letters.

    Args:
        store: A folder as `Path`, an `s3://bucket/prefix` URL, or a `Store`.
        above: Values of so many bytes or fewer are sent as they are.
        keep: How long values are kept, in seconds or as timedelta; dead letters must be seen to within that.
    """

    tokens: Final = frozenset({TOKEN})
    required: Final = False

    def __init__(
        self, store: "Store | Path | str", *, above: int = 256 * 1024, keep: Seconds = timedelta(days=30)
    ) -> None:
        if isinstance(above, bool) or not isinstance(above, int) or above < 0:
            raise ConfigError(f"claim_check(above=) is a number of bytes; it is {above!r}")
        self._store = _store(store)
        self._above = above
        self._keep = seconds(keep, "claim_check(keep=)")
        if not self._keep:
            raise ConfigError("claim_check(keep=) must be more than 0 seconds")
        self._swept: float | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def apply(self, message: Message, /) -> Applied:
        """Put the value into the store."""
        value = message.value
        if len(value) <= self._above:
            return None
        key = f"{datetime.now(UTC):%Y-%m-%d}/{uuid4().hex}"
        await self._store.put(key, value)
        self._sweep_now_and_then()
        claim = _Claim(key, len(value), hashlib.sha256(value).hexdigest())
        return message.replace(value=msgspec.json.encode(claim)), TOKEN

    async def undo(self, message: Message, token: str, /) -> Message:
        """Get the value. A store that is away is waited for; a value that has gone is a DecodeError."""
        try:
            claim = msgspec.json.decode(message.value, type=_Claim)
        except msgspec.DecodeError as error:
            raise DecodeError(f"the value is no claim: {error}") from error
        if not _KEY.fullmatch(claim.key):
            raise DecodeError(f"the claim names no value of a store: {claim.key[:80]!r}")
        try:
            value = await self._store.get(claim.key)
        except Exception as error:
            raise Unprepared(self._again(claim.key)) from error
        if value is None:
            raise DecodeError(
                f"the value of the claim {claim.key!r} has gone: it was kept for {self._keep:g} s"
            )
        if hashlib.sha256(value).hexdigest() != claim.sha256:
            raise DecodeError(f"the value of the claim {claim.key!r} is not the one that was put there")
        return message.replace(value=value)

    def _again(self, key: str) -> Awaitable[object]:
        return self._store.get(key)

    def _sweep_now_and_then(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._swept is not None and now - self._swept < SWEEP:
            return
        self._swept = now
        self._sweeping = asyncio.create_task(self._sweep(), name="things_kit claims")

    async def _sweep(self) -> None:
        try:
            await self._store.sweep(datetime.now(UTC) - timedelta(seconds=self._keep))
        except Exception as error:  # noqa: BLE001 - the next one may do it
            log.warning("old claims were not removed: %s", error)


def _store(store: object) -> Store:
    if isinstance(store, Path):
        from things_kit.middleware.folder_store import FolderStore  # noqa: PLC0415 - one of two

        return FolderStore(store)
    if isinstance(store, str):
        from things_kit.middleware.s3_store import S3Store  # noqa: PLC0415 - as above, and an extra

        return S3Store(store)
    if isinstance(store, type) or not isinstance(store, Store):
        raise ConfigError(f"claim_check takes a Path, an s3:// URL or a Store; it was given {store!r}")
    return store
