"""Notifications: a hint to whoever waits, in this process and others, that there is something."""

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Iterable
from typing import Any, Final

from things_kit.brokers.postgres.connections import Connections
from things_kit.brokers.postgres.watch import Watch
from things_kit.engine.driver import ConnectionLost

log = logging.getLogger("things_kit.postgres")

PAUSE: Final = 0.005
"""Seconds between two notifications, however many ask for them."""

HEARD_WITHIN: Final = 2.0
"""Seconds in which the listener must hear what it says to itself."""

LONGEST_PAYLOAD: Final = 7000
"""Bytes of a notification, which has 8000 at most; a longer list is no list, and means all topics."""


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
