"""One look for all that wait: when somebody says that there is something, when something is due, and every so often."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

import msgspec

from things_kit.brokers.postgres.connections import Connections
from things_kit.brokers.postgres.schema import quoted
from things_kit.engine.driver import ConnectionLost, Subscription

PAUSE: Final = 0.005
"""Seconds between two looks, however many ask for them."""


class Member(msgspec.Struct, eq=False):
    """One receiver: its row, its group, and how many messages it holds."""

    id: int
    group: int
    subscription: Subscription
    held: int = 0

    def vanished(self) -> ConnectionLost:
        """What its receiver is told."""
        topic, group = self.subscription.topic, self.subscription.group
        return ConnectionLost(f"the topic {topic!r} or its group {group!r} was removed")


class Watch:
    """Looks for what waits, while somebody does."""

    def __init__(self, connections: Connections, schema: str, poll: float) -> None:
        self._connections = connections
        self._look = f"SELECT * FROM {quoted(schema)}.look($1, $2)"  # noqa: S608 - an identifier
        self._poll = poll
        self._waiting: dict[Member, asyncio.Future[None]] = {}
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def wait(self, member: Member, seconds: float) -> bool:
        """Until there may be something for this receiver. Raises ConnectionLost, also when its group is gone."""
        future = self._waiting[member] = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="things-kit-postgres-watch")
        self._asked.set()
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        finally:
            if self._waiting.get(member) is future:
                del self._waiting[member]
        return True

    def nudge(self, topics: Iterable[str] | None = None) -> None:
        """There is something new in these topics; None: perhaps in any."""
        if topics is None:
            if self._waiting:
                self._asked.set()
            return
        told = set(topics)
        if any(member.subscription.topic in told for member in self._waiting):
            self._asked.set()

    async def close(self) -> None:
        """End the task."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        while self._waiting:
            self._asked.clear()
            members = list(self._waiting)
            try:
                later = await self._look_for(members)
            except Exception as error:  # noqa: BLE001 - it reaches all who wait
                for member in members:
                    self._tell(member, error)
                later = self._poll
            await asyncio.sleep(PAUSE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(self._poll, later))):
                    await self._asked.wait()

    async def _look_for(self, members: list[Member]) -> float:
        groups, receivers = [member.group for member in members], [member.id for member in members]
        rows = await self._connections.rows("looking for messages", self._look, groups, receivers)
        found = {row[0]: (row[1], row[2]) for row in rows}
        soonest = self._poll
        for member in members:
            ready, later = found.get(member.group, (None, None))
            if ready is None:
                self._tell(member, member.vanished())
            elif ready:
                self._tell(member, None)
            elif later is not None:
                soonest = min(soonest, later)
        return soonest

    def _tell(self, member: Member, error: Exception | None) -> None:
        future = self._waiting.get(member)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
