"""Topics and groups at the server: declared, removed, counted and trimmed."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis.exceptions import ResponseError

from things_kit.brokers.redis import scripts
from things_kit.brokers.redis.errors import ERRORS, says
from things_kit.brokers.redis.keys import delayed_key, group_keys, suspects_key, topic_keys
from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError

log = logging.getLogger("things_kit.redis")

TIDY: Final = 60.0
"""Seconds between two trims of a topic, at the most."""


class Admin:
    """Asks through one client. `declare`, `remove`, `lag` and `tidy` raise our errors, the others the client's."""

    def __init__(self, client: Any, retain: float) -> None:
        self._client = client
        self._retain = retain
        self._tidied: dict[str, float] = {}

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create a stream without entries, and groups."""
        with ERRORS.during(f"declaring {topic!r}"):
            if not groups:
                await scripts.DECLARE(self._client, (topic,))
            for group in groups:
                await scripts.JOIN(self._client, group_keys(topic, group), group, "0", 1)

    async def remove(self, topic: str, group: str | None) -> None:
        """Delete the stream, what its groups have put back and what comes later, or one group alone."""
        with ERRORS.during(f"removing {topic!r}" if group is None else f"removing {group!r} of {topic!r}"):
            if group is None:
                groups = await self._groups(topic)
                await self._client.unlink(
                    *topic_keys(topic),
                    *_of_groups(delayed_key, topic, groups),
                    *_of_groups(suspects_key, topic, groups),
                )
                return
            try:
                await self._client.xgroup_destroy(topic, group)
            except ResponseError as error:
                if not says(error, "key to exist"):
                    raise
            await self._client.unlink(delayed_key(topic, group), suspects_key(topic, group))

    async def _groups(self, topic: str) -> list[bytes]:
        try:
            found = await self._client.xinfo_groups(topic)
        except ResponseError as error:
            if says(error, "no such key"):
                return []
            raise
        return [group["name"] for group in found]

    async def topics(self) -> list[str]:
        """All streams of the database, in no order."""
        with ERRORS.during("asking for all topics"):
            found = [key async for key in self._client.scan_iter(count=1000, _type="stream")]
        return [key.decode(errors="backslashreplace") for key in found]

    async def groups(self, topic: str) -> list[str]:
        """The groups of a stream, whoever made them."""
        with ERRORS.during(f"asking for the groups of {topic!r}"):
            return [name.decode(errors="backslashreplace") for name in await self._groups(topic)]

    async def end(self, topic: str) -> bytes | None:
        """The last ID of a stream, behind what is due; None where there is none."""
        await scripts.CARRY(self._client, topic_keys(topic))
        try:
            found = await self._client.xinfo_stream(topic)
        except ResponseError as error:
            if says(error, "no such key"):
                return None
            raise
        return bytes(found["last-generated-id"])

    async def lag(self, topic: str, group: str) -> int:
        """What is due or not delivered yet, what is pending, and what was put back."""
        keys, cursor = group_keys(topic, group), b""
        lag: int = 0
        with ERRORS.during(f"asking for the lag of {topic!r}"):
            while True:
                counted, cursor = await scripts.LAG(self._client, keys, group, cursor)
                lag += counted
                if not cursor:
                    return lag

    async def tidy(self, topic: str) -> None:
        """Delete from a stream what is older than `retain` and acknowledged by every group, if it is time to."""
        now = asyncio.get_running_loop().time()
        if self._retain < 0 or now < self._tidied.get(topic, 0.0):
            return
        self._tidied[topic] = now + min(TIDY, max(1.0, self._retain / 10))
        try:
            with ERRORS.during(f"trimming {topic!r}"):
                groups = await self._groups(topic)
                keys = topic, *_of_groups(delayed_key, topic, groups)
                oldest = max(0, round(1000 * (time.time() - self._retain)))
                await scripts.TRIM(self._client, keys, f"{oldest}-0", *groups)
        except (ConnectionLost, ConfigError) as error:  # nothing that was asked for depends on it
            log.debug("%s", error)


def _of_groups(key: Callable[[str, str], str], topic: str, groups: Sequence[bytes]) -> list[str]:
    """The keys of all groups that can be ours: those of others may have names that are no UTF-8."""
    ours = []
    for group in groups:
        with contextlib.suppress(UnicodeDecodeError):
            ours.append(key(topic, group.decode()))
    return ours
