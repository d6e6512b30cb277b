"""The end of a stream, which takes two: we say that we have no more to say, and the service ends it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

LATE: Final = 5.0
"""Seconds after which a stream that was asked to end is cut off: what is on its way then comes again only after its lease."""


class Stream:
    """One stream, from its opening to its end.

    Attributes:
        ending: Whether it was asked to end.
    """

    def __init__(self) -> None:
        self.ending = False
        self._over = asyncio.Event()
        self._limit: asyncio.Timeout | None = None

    def end(self) -> None:
        """Ask it to end; what is on its way is still read."""
        if not self.ending:
            self.ending = True
            self._over.set()
            if self._limit is not None:
                self._limit.reschedule(asyncio.get_running_loop().time() + LATE)

    async def over(self) -> None:
        """Wait for as long as there may be something to say: gRPC waits for us as well, long after the service ended it."""
        await self._over.wait()

    @asynccontextmanager
    async def lasting(self) -> AsyncIterator[None]:
        """While it is read. Raises TimeoutError if it does not end when it was asked to."""
        try:
            async with asyncio.timeout(LATE if self.ending else None) as self._limit:
                yield
        finally:
            self._limit = None
            self._over.set()
