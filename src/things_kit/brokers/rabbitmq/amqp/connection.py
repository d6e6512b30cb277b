"""Connections on asyncio's own transport: from the login to the end, with heartbeats that notice silence in time.

Made for what comes and goes by the thousand: frames are read where they lie, and written many at once.
"""

import asyncio
import contextlib
import logging
import ssl
from typing import Any, Final, NamedTuple, Self, cast

from pika import spec

from things_kit.brokers.rabbitmq.amqp.channel import FAREWELL, Channel
from things_kit.brokers.rabbitmq.amqp.frames import FRAME, frame
from things_kit.brokers.rabbitmq.amqp.heartbeats import Heartbeats
from things_kit.engine.secrets import Secret

log = logging.getLogger("things_kit.rabbitmq")

HELLO: Final = b"AMQP\x00\x00\x09\x01"
MOST_CHANNELS: Final = 2047
MOST_IN_FRAME: Final = spec.FRAME_MAX_SIZE

_KINDS: Final = {spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT}

CLIENT: Final[dict[str, Any]] = {
    "product": "things-kit",
    "connection_name": "things-kit",
    "capabilities": dict.fromkeys(("authentication_failure_close", "basic.nack", "connection.blocked", "consumer_cancel_notify", "publisher_confirms"), True),
}  # fmt: skip
"""What we say of ourselves when we log in."""


class Login(NamedTuple):
    """As whom to connect, and how.

    Attributes:
        user: Who we are.
        password: The password.
        virtual_host: What we want to speak to.
        heartbeat: Both sides say twice in so many seconds that they live; 0: neither.
        context: For TLS; None: without.
        patience: Seconds for a host to let us in.
    """

    user: str
    password: Secret
    virtual_host: str
    heartbeat: int
    context: ssl.SSLContext | None
    patience: float


class Connection(asyncio.Protocol):
    """One connection, from its login to its end.

    Attributes:
        error: Why it ended; None while it is well.
        heard: When something came last, in the loop's time.
        properties: What the broker says of itself.
        most: Bytes of a frame.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.error: Exception | None = None
        self.heard = self._loop.time()
        self.properties: dict[str, Any] = {}
        self.most = MOST_IN_FRAME
        self.gone = asyncio.Event()
        self.blocked: str | None = None
        self.unblocked = asyncio.Event()
        self.unblocked.set()
        self._control = Channel(self, 0)
        self._greeting = self._control.expect()
        self._channels = {0: self._control}
        self._most_channels = MOST_CHANNELS
        self._transport: asyncio.Transport | None = None
        self._heartbeats: Heartbeats | None = None
        self._rest = b""

    @classmethod
    async def open(cls, host: str, port: int, login: Login) -> Self:
        """Connect to one host and log in. Raises OSError, ssl.SSLError, TimeoutError, Closed."""
        loop, connection = asyncio.get_running_loop(), cls()
        limit = asyncio.timeout(login.patience)
        try:
            async with limit:
                await loop.create_connection(
                    lambda: connection,
                    host,
                    port,
                    ssl=login.context,
                    server_hostname=None if login.context is None else host,
                )
                await connection._log_in(login)
        except BaseException as error:
            connection.drop(ConnectionAbortedError("it was given up"))
            if isinstance(error, TimeoutError) and limit.expired():
                raise TimeoutError(f"it did not let us in within {login.patience:g} s") from None
            raise
        return connection

    async def _log_in(self, login: Login) -> None:
        control, interval = self._control, login.heartbeat
        self.properties = (await self._greeting).server_properties or {}
        plain = f"\0{login.user}\0{login.password.reveal()}"
        tune = await control.ask(spec.Connection.StartOk(client_properties=CLIENT, response=plain))
        self._most_channels = min(tune.channel_max or MOST_CHANNELS, MOST_CHANNELS)
        self.most = min(tune.frame_max or MOST_IN_FRAME, MOST_IN_FRAME)
        control.tell(spec.Connection.TuneOk(self._most_channels, self.most, interval))
        await control.ask(spec.Connection.Open(virtual_host=login.virtual_host))
        if interval:
            self._heartbeats = Heartbeats(
                interval,
                send=lambda: self.write(frame(spec.FRAME_HEARTBEAT, 0, b"")),
                heard=lambda: self.heard,
                silent=lambda text: self.drop(ConnectionAbortedError(text)),
            )

    def write(self, data: bytes) -> None:
        """Send frames; nothing, once it has ended."""
        if self._transport is not None and self.error is None:
            self._transport.write(data)

    async def channel(self) -> "Channel":
        """Open a channel. Raises what ended the connection, or OverflowError if it has as many as it may."""
        if self.error is not None:
            raise self.error
        number = next((each for each in range(1, self._most_channels + 1) if each not in self._channels), 0)
        if not number:
            raise OverflowError(f"a connection has {self._most_channels} channels at most")
        channel = self._channels[number] = Channel(self, number)
        try:
            await channel.ask(spec.Channel.Open())
        except asyncio.CancelledError:
            channel.leave(ConnectionAbortedError("it was given up"))
            raise
        return channel

    def forget(self, number: int) -> None:
        """A channel is closed on both sides: its number is free."""
        self._channels.pop(number, None)

    async def close(self) -> None:
        """Leave, with the broker's consent if it answers in time."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(FAREWELL):
                await self._control.ask(spec.Connection.Close(200, "", 0, 0))
        self.drop(ConnectionAbortedError("we left"))
        await self.gone.wait()

    def drop(self, reason: Exception) -> None:
        """End it without a word to the broker."""
        self._end(reason)
        if self._transport is not None:
            self._transport.abort()

    def hang_up(self, reason: Exception) -> None:
        """End it once what was written has gone."""
        self._end(reason)
        if self._transport is not None:
            self._transport.close()

    def _end(self, reason: Exception) -> None:
        if self.error is not None:
            return
        self.error = reason
        if self._heartbeats is not None:
            self._heartbeats.stop()
        self.block(None)
        for channel in list(self._channels.values()):
            channel.end(reason)

    def block(self, why: str | None) -> None:
        """The broker takes no messages over this connection now, or does again (None)."""
        self.blocked = why
        if why is None:
            self.unblocked.set()
        else:
            self.unblocked.clear()

    # --- what asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The host has answered: say which protocol we speak."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(HELLO)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over, by whoever's wish."""
        self._end(exc or ConnectionResetError("the broker hung up"))
        self.gone.set()

    def data_received(self, data: bytes) -> None:
        """What cannot be read ends the connection, as nobody knows where the next frame begins."""
        self.heard = self._loop.time()
        try:
            self._read(self._rest + data if self._rest else data)
        except Exception as error:
            log.exception("what RabbitMQ sent cannot be read; the connection is opened anew")
            self.drop(error)

    def _read(self, data: bytes) -> None:
        start, length, channels = 0, len(data), self._channels
        while start + FRAME.size < length:
            kind, number, size = FRAME.unpack_from(data, start)
            begins = start + FRAME.size
            end = begins + size
            if kind not in _KINDS or size > MOST_IN_FRAME:
                raise ValueError(f"Unknown frame type {kind}, or a frame of {size} bytes")
            if end >= length:
                break
            if data[end] != spec.FRAME_END:
                raise ValueError("a frame has no end where it should")
            channel = channels.get(number)
            if channel is not None:
                channel.read(kind, data, begins, end)
            start = end + 1
        self._rest = data[start:]
