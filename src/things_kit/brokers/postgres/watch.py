"""One look for all that wait: when somebody says that there is something, when something is due, and every so often."""

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from things_kit.brokers.postgres.connections import Connections
from things_kit.brokers.postgres.schema import quoted
from things_kit.engine.driver import ConnectionLost, Subscription

log = logging.getLogger("things_kit.postgres")

PAUSE: Final = 0.005
"""Seconds between two looks or notifications, however many ask for them."""

HEARD_WITHIN: Final = 2.0
"""Seconds in which the listener must hear what it says to itself."""

LONGEST_PAYLOAD: Final = 7000
"""Bytes of a notification, which has 8000 at most; a longer list is no list, and means all topics."""


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


class Bell:
    """NOTIFY after a publish was confirmed, never within its transaction, where it would make commits queue up.

    What is rung while one rings goes out together. It is only a hint: who hears nothing looks by itself.
    """

    def __init__(self, connections: Connections, schema: str, watch: Watch) -> None:
        self.heard: bool | None = None
        """Whether the listener hears; None: there is none, or it is not known yet."""
        self._connections = connections
        self._channel = schema
        self._watch = watch
        self._topics: set[str] = set()
        self._ringing: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._echo = asyncio.Event()
        self._nonce = secrets.token_hex(8)

    def ring(self, topics: Iterable[str]) -> None:
        """Tell everybody that there is something in these topics."""
        self._topics.update(topics)
        if self._topics and (self._ringing is None or self._ringing.done()):
            self._ringing = asyncio.create_task(self._ring(), name="things-kit-postgres-notify")

    def listen(self) -> None:
        """Begin to listen, if nobody does yet."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen(), name="things-kit-postgres-listen")

    async def close(self) -> None:
        """End both tasks."""
        tasks = {task for task in (self._ringing, self._listening) if task is not None}
        self._ringing = self._listening = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _ring(self) -> None:
        while self._topics:
            topics, self._topics = sorted(self._topics), set()
            payload = json.dumps(topics)
            if len(payload) > LONGEST_PAYLOAD:
                payload = ""
            with contextlib.suppress(Exception):  # a hint that is lost costs one look's time
                await self._notify(payload)
            await asyncio.sleep(PAUSE)

    async def _notify(self, payload: str) -> None:
        await self._connections.rows("notifying", "SELECT pg_notify($1, $2)", self._channel, payload)

    async def _listen(self) -> None:
        while True:
            try:
                await self._hear()
            except ConnectionLost as lost:
                log.debug("listening has ended: %s", lost)
            if self.heard is False:
                log.info("notifications do not arrive, so this process looks for messages instead")
                return
            await asyncio.sleep(1.0)

    async def _hear(self) -> None:
        """Until the connection is lost, or does not hear itself: a pooler has given us another one's."""
        connection = await self._connections.connect()
        ended = asyncio.Event()
        try:
            connection.add_termination_listener(lambda *_: ended.set())
            await connection.add_listener(self._channel, self._heard)
            self._echo.clear()
            await self._notify(self._nonce)
            try:
                async with asyncio.timeout(HEARD_WITHIN):
                    await self._echo.wait()
            except TimeoutError:
                self.heard = False
                return
            self.heard = True
            self._watch.nudge()
            await ended.wait()
        finally:
            connection.terminate()

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        if payload == self._nonce:
            self._echo.set()
            return
        try:
            self._watch.nudge(json.loads(payload) if payload else None)
        except (ValueError, TypeError):  # another version's, or somebody else's
            self._watch.nudge()
