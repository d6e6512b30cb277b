"""Handles a message once within a window of time, though it comes twice."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, Literal
from uuid import uuid4

from things_kit.messaging.consumer import Bound
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.handler import Handle, HandleBatch, WrapsHandling
from things_kit.messaging.message import Message
from things_kit.messaging.outcomes import BatchError, Later
from things_kit.messaging.policy import Seconds, seconds
from things_kit.middleware.marks import Marks, marks_of

log = logging.getLogger("things_kit.deduplicate")

AGAIN: Final = 1.0
"""Seconds until a message is looked at again that is being handled elsewhere."""


def deduplicate(store: Any, window: Seconds = timedelta(hours=1), lease: Seconds = 60.0) -> "Deduplicate":
    """A message that this group has handled within the window is acknowledged without a call.

    Marks are by group, topic and id. That of a running handler has its owner, and is renewed; it expires after `lease` when
    its process has died, and a failure removes it. One object is of one group.

    Args:
        store: A `MemoryStore`, an SQLAlchemy engine, a client of redis.asyncio, or an object with the methods of `Marks`.
        window: How long what was handled is known.
        lease: How long a mark lasts without being renewed.

    Raises:
        ConfigError: An argument is not what it should be.
    """
    for name, value in (("window", window), ("lease", lease)):
        if not seconds(value, f"deduplicate's {name}"):
            raise ConfigError(f"deduplicate's {name} must be more than 0 seconds")
    return Deduplicate(marks_of(store), seconds(window, "window"), seconds(lease, "lease"))


class Deduplicate(WrapsHandling):
    """The middleware that `deduplicate` makes.

    Attributes:
        state: "ready", or "store away" while its store does not answer and messages wait for it.
    """

    name: Final = "deduplicate"

    def __init__(self, marks: Marks, window: float, lease: float) -> None:
        self._marks = marks
        self._window = window
        self._lease = lease
        self.state: Literal["ready", "store away"] = "ready"
        self._group: str | None = None

    async def create(self) -> None:
        """Make the table, where the store is a database. Fine where it is there, or none is needed."""
        make: Callable[[], Any] | None = getattr(self._marks, "create", None)
        if make is not None:
            await make()

    async def bind(self, consumer: Bound) -> None:
        """Learn the group, and look at the store.

        Raises ConfigError where it is another group's already, or the store lacks its table. A store that is away is waited for.
        """
        if self._group is not None and self._group != consumer.group:
            raise ConfigError("a deduplicate is of one group: make another one for the other consumer")
        self._group = consumer.group
        look: Callable[[], Awaitable[None]] | None = getattr(self._marks, "look", None)
        try:
            if look is not None:
                await look()
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it says, messages wait for it as they do later
            self._is_away(error)

    def __call__(self, handle: Handle) -> Handle:
        """Around the handling of one message."""

        async def once(message: Message) -> None:
            mark, owner = self._mark(message), uuid4().hex
            if not await self._claimed(mark, owner):
                return
            async with self._held([mark], owner):
                await handle(message)

        return once

    def handle_batch(self, handle: HandleBatch) -> HandleBatch:
        """Around the handling of a list: those that were handled are left out, an id twice is given once."""

        async def once(messages: list[Message]) -> None:
            ours: dict[str, int] = {}
            owner = uuid4().hex
            try:
                for index, message in enumerate(messages):
                    mark = self._mark(message)
                    if mark not in ours and await self._claimed(mark, owner):
                        ours[mark] = index
            except BaseException:
                await self._release(list(ours), owner)
                raise
            if ours:
                await self._handle_those(handle, messages, ours, owner)

        return once

    async def _handle_those(
        self, handle: HandleBatch, messages: list[Message], ours: dict[str, int], owner: str
    ) -> None:
        marks, indices = list(ours), list(ours.values())
        async with self._held(marks, owner) as failed:
            try:
                await handle([messages[index] for index in indices])
            except BatchError as error:
                partly = error.moved(indices)
                if partly is None:
                    raise
                failed += [marks[index] for index in error.errors]
            else:
                return
        raise partly

    @asynccontextmanager
    async def _held(self, marks: Sequence[str], owner: str) -> AsyncIterator[list[str]]:
        """Ours while this runs; then known as handled, but for those that are named as failed."""
        task: asyncio.Task[None] | None = None

        def begin() -> None:
            nonlocal task
            task = asyncio.create_task(self._renew(marks, owner), name="things_kit deduplicate")

        renewing = asyncio.get_running_loop().call_later(self._lease / 3, begin)
        failed: list[str] = []
        try:
            yield failed
        except BaseException:
            await self._release(marks, owner)
            raise
        finally:
            renewing.cancel()
            if task is not None:
                task.cancel()
        await self._release(failed, owner)
        for mark in marks:
            if mark not in failed:
                await self._keep(mark, owner)

    async def _renew(self, marks: Sequence[str], owner: str) -> None:
        while True:
            for mark in marks:
                try:
                    await self._marks.renew(mark, owner, self._lease)
                except Exception as error:  # noqa: BLE001 - the next time may do
                    log.warning("a mark was not renewed: %s", error)
            await asyncio.sleep(self._lease / 3)

    async def _release(self, marks: Sequence[str], owner: str) -> None:
        for mark in marks:
            try:
                await self._marks.release(mark, owner)
            except Exception as error:  # noqa: BLE001 - it ends by itself
                log.warning("a mark was not removed, and ends after %g s: %s", self._lease, error)

    async def _keep(self, mark: str, owner: str) -> None:
        """Note that it was handled: so it was, whatever becomes of the note."""
        try:
            await self._marks.done(mark, owner, self._window)
        except Exception as error:  # noqa: BLE001 - it is no failure of the message
            log.warning(
                "what was handled was not noted, and would be handled again after %g s: %s",
                self._lease,
                error,
            )

    async def _claimed(self, mark: str, owner: str) -> bool:
        """Whether it is to be handled by this very call. Raises Later while another one does, here or elsewhere."""
        try:
            found = await self._marks.claim(mark, owner, self._lease)
        except Exception as error:
            self._is_away(error)
            raise Later(AGAIN) from error  # which is no failure of the message
        self._is_there()
        if found == "taken":
            raise Later(min(AGAIN, self._lease))
        return found == "ours"

    def _is_away(self, error: Exception) -> None:
        if self.state == "ready":
            self.state = "store away"
            log.warning("messages wait, as the store of deduplicate is away: %s", error)

    def _is_there(self) -> None:
        if self.state == "store away":
            self.state = "ready"
            log.warning("the store of deduplicate is there again")

    def _mark(self, message: Message) -> str:
        parts = [(part or "").encode() for part in (self._group, message.topic, message.id)]
        return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).hexdigest()
