"""One connection that waits for messages, without a timer of its own, and can be woken."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import ConnectionPool, Redis

from things_kit.brokers.redis.calls import answer_of
from things_kit.brokers.redis.errors import ERRORS
from things_kit.engine.cancelling import ended
from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError


class Reading:
    """The calls of one receiver that block at the server.

    A call that was begun is never broken off, since the server may have handed out something already: who is cancelled
    leaves it running, and what it brings is in the inbox then.
    """

    def __init__(self, pool: ConnectionPool, *, own: bool) -> None:
        self._own = own
        self._pool = pool
        self._others = Redis(connection_pool=pool)
        self._client: Any = Redis(connection_pool=pool, single_connection_client=True)
        self._number = 0
        self._call: asyncio.Task[int] | None = None
        self._waking: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect. Raises ConnectionLost."""
        try:
            with ERRORS.during("connecting"):
                await self._client.initialize()
                self._number = await self._client.client_id()
        except BaseException:
            await self.close()
            raise

    async def command(self, *words: Any, until: float | None = None) -> Any:
        """Send a command over the connection that may block. Raises the client's errors.

        With `until`, by the loop's time, it comes back then: by itself, on a quiet server, it would up to 0.1 seconds later (`hz`).
        """
        if until is None:
            return await answer_of(self._client.connection, words)
        alarm = asyncio.get_running_loop().call_at(until, self._ring)
        try:
            return await answer_of(self._client.connection, words)
        finally:
            alarm.cancel()

    def _ring(self) -> None:
        task = asyncio.ensure_future(self._try_to_wake())
        self._waking.add(task)
        task.add_done_callback(self._waking.discard)

    async def _try_to_wake(self) -> None:
        with contextlib.suppress(ConnectionLost, ConfigError), ERRORS.during("waking the receiver"):
            await self.wake()

    async def call(self, bring: Callable[[], Awaitable[int]]) -> int:
        """Have messages brought, or wait for the call that was abandoned; how many came. Raises what `bring` raises."""
        if self._call is None:
            self._call = asyncio.ensure_future(bring())
        call = self._call
        await asyncio.wait([call])
        self._call = None
        return call.result()

    async def wake(self) -> None:
        """Have a call that blocks come back."""
        if self._call is not None:
            await self._others.client_unblock(self._number)

    async def settle_down(self) -> None:
        """Return when no call is running. Raises the client's errors."""
        while self._call is not None and not self._call.done():
            await self.wake()
            await asyncio.wait(
                [self._call], timeout=0.05
            )  # it may have been on its way to the server as we woke it

    async def close(self) -> None:
        """Break off what is running, and disconnect, also if this is cancelled meanwhile."""
        call, self._call = self._call, None
        try:
            await ended(*self._waking, *([] if call is None else [call]))
        finally:
            await self._disconnect()

    async def _disconnect(self) -> None:
        connection = self._client.connection
        if connection is not None:
            with contextlib.suppress(ConnectionLost, ConfigError), ERRORS.during("disconnecting"):
                await connection.disconnect(nowait=True)  # it was blocked, so it is not for anybody else
        with contextlib.suppress(ConnectionLost, ConfigError), ERRORS.during("disconnecting"):
            await self._client.aclose()
            if self._own:
                await self._pool.aclose()
