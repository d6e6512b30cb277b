"""A connection that is opened again by whoever needs it next."""

import asyncio

from things_kit.brokers.rabbitmq.amqp.channel import Channel
from things_kit.brokers.rabbitmq.amqp.connection import Connection
from things_kit.brokers.rabbitmq.errors import ERRORS, OPENING
from things_kit.brokers.rabbitmq.options import Settings
from things_kit.engine.driver import ConnectionLost


class Link:
    """One connection after another."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        self._opening: asyncio.Task[Connection] | None = None

    @property
    def blocked(self) -> str | None:
        """Why the broker takes no messages over this connection now; None if it does."""
        return None if self._connection is None else self._connection.blocked

    async def ready(self) -> Connection:
        """The connection, opened if it is not. Raises ConnectionLost, ConfigError."""
        if self._connection is not None and self._connection.error is None:
            return self._connection
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(), name="things_kit rabbitmq connection")
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        opening = self._opening
        await asyncio.wait({opening})  # and not the task itself, which others wait for as well
        if opening.cancelled():
            raise ConnectionLost("it is being closed")
        return opening.result()

    async def _open(self) -> Connection:
        """The first host that lets us in."""
        login, (*others, last) = self._settings.login, self._settings.addresses
        for host, port in others:
            try:
                self._connection = await Connection.open(host, port, login)
            except Exception:  # noqa: BLE001, S112 - whatever it is, the next host may be well
                continue
            return self._connection
        with OPENING.during(self._settings.url.display):
            self._connection = await Connection.open(*last, login)
        return self._connection

    async def until_unblocked(self, within: float) -> None:
        """Raises ConnectionLost if the broker still takes nothing then."""
        connection = self._connection
        if connection is not None and connection.blocked is not None:
            try:
                async with asyncio.timeout(within):
                    await connection.unblocked.wait()
            except TimeoutError:
                raise ConnectionLost(f"it takes no messages for now: {connection.blocked}") from None

    async def channel(self) -> Channel:
        """A channel of its own. Raises ConnectionLost, ConfigError."""
        connection = await self.ready()
        with ERRORS.during("opening a channel"):
            return await connection.channel()

    async def close(self) -> None:
        """Leave."""
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait({self._opening})
        connection, self._connection = self._connection, None
        if connection is not None and connection.error is None:
            await connection.close()
