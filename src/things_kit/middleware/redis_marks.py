"""Marks in Redis, which lets them expire."""

import inspect
from typing import Any, Final

from things_kit.messaging.errors import ConfigError
from things_kit.middleware.marks import Claim

PREFIX: Final = "things-kit:deduplicate:"
DONE: Final = "done"

_RENEW: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end"
_RELEASE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class RedisMarks:
    """Marks in what a client of redis-py is connected with; one key each."""

    def __init__(self, client: Any) -> None:
        if not inspect.iscoroutinefunction(type(client).execute_command):
            raise ConfigError("deduplicate needs a client of redis.asyncio; it was given one that blocks")
        self._client = client

    async def claim(self, mark: str, owner: str, lease: float, /) -> Claim:
        """See `Marks.claim`."""
        key = PREFIX + mark
        while True:
            if await self._client.set(key, owner, nx=True, px=_milliseconds(lease)):
                return "ours"
            found = await self._client.get(key)
            if found is None:
                continue  # it has just expired
            text = found if isinstance(found, str) else found.decode()
            if text == owner:
                return "ours"
            return "done" if text == DONE else "taken"

    async def renew(self, mark: str, owner: str, lease: float, /) -> None:
        """See `Marks.renew`."""
        await self._client.eval(_RENEW, 1, PREFIX + mark, owner, _milliseconds(lease))

    async def done(self, mark: str, owner: str, window: float, /) -> None:
        """See `Marks.done`."""
        del owner
        await self._client.set(PREFIX + mark, DONE, px=_milliseconds(window))

    async def release(self, mark: str, owner: str, /) -> None:
        """See `Marks.release`."""
        await self._client.eval(_RELEASE, 1, PREFIX + mark, owner)


def _milliseconds(duration: float) -> int:
    return max(1, int(duration * 1000))
