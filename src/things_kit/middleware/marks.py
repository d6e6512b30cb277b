"""Where `deduplicate` keeps what was handled, and who handles what."""

import asyncio
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from things_kit.messaging.errors import ConfigError

Claim: TypeAlias = Literal["ours", "done", "taken"]
"""What became of a claim: it is ours to handle, was handled already, or is being handled elsewhere."""


@runtime_checkable
class Marks(Protocol):
    """A store of marks, each with its owner and when it expires; all durations are in seconds.

    It may have `async look()` too, called at a consumer's start: it raises ConfigError where the store cannot be used as it is.
    """

    async def claim(self, mark: str, owner: str, lease: float, /) -> Claim:
        """Make the mark, if nobody has it; of two who ask at once one gets it."""

    async def renew(self, mark: str, owner: str, lease: float, /) -> None:
        """Let it last for another lease, if it is still this owner's."""

    async def done(self, mark: str, owner: str, window: float, /) -> None:
        """Note that it was handled, for so long."""

    async def release(self, mark: str, owner: str, /) -> None:
        """Take it away, if it is still this owner's."""


class MemoryStore:
    """Marks in this process: for tests, and for programs of one process."""

    def __init__(self) -> None:
        self._marks: dict[str, tuple[str | None, float]] = {}  # the owner, None once handled; when it expires
        self._sweep_at = 1000

    async def claim(self, mark: str, owner: str, lease: float, /) -> Claim:
        """See `Marks.claim`."""
        now = asyncio.get_running_loop().time()
        found = self._marks.get(mark)
        if found is not None and found[1] > now and found[0] != owner:
            return "done" if found[0] is None else "taken"
        self._marks[mark] = owner, now + lease
        if len(self._marks) > self._sweep_at:
            self._marks = {each: kept for each, kept in self._marks.items() if kept[1] > now}
            self._sweep_at = 2 * len(self._marks) + 1000
        return "ours"

    async def renew(self, mark: str, owner: str, lease: float, /) -> None:
        """See `Marks.renew`."""
        if self._is(mark, owner):
            self._marks[mark] = owner, asyncio.get_running_loop().time() + lease

    async def done(self, mark: str, owner: str, window: float, /) -> None:
        """See `Marks.done`."""
        del owner
        self._marks[mark] = None, asyncio.get_running_loop().time() + window

    async def release(self, mark: str, owner: str, /) -> None:
        """See `Marks.release`."""
        if self._is(mark, owner):
            del self._marks[mark]

    def _is(self, mark: str, owner: str) -> bool:
        found = self._marks.get(mark)
        return found is not None and found[0] == owner


def marks_of(store: Any) -> Marks:
    """The marks in what `deduplicate` was given. Raises ConfigError."""
    if isinstance(store, Marks) and not isinstance(store, type):
        return store
    package = type(store).__module__.partition(".")[0]
    if package == "redis":
        from things_kit.middleware.redis_marks import RedisMarks  # noqa: PLC0415 - one of several

        return RedisMarks(store)
    if package == "sqlalchemy":
        from things_kit.middleware.sql_marks import SQLMarks  # noqa: PLC0415 - as above, and an extra

        return SQLMarks(store)
    raise ConfigError(
        "deduplicate keeps its marks in a MemoryStore, an SQLAlchemy engine, a redis.asyncio client, or an object with "
        f"the methods of Marks; it was given {store!r}"
    )
