"""A way to a server through a network that fails when a test tells it to: the server itself stays well.

Every fault is there for one connection (`relay.connections[0].half_open()`) and for all of them
(`relay.half_open()`). A server that tells its clients where it is (Kafka, the emulators of SQS and Service Bus) must
tell them the relay's port, or they connect past it.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import msgspec

_PIECE: Final = 65_536
_APART: Final = 0.001
"""Seconds between two slices: what follows at once would arrive as one piece."""


class _Line(msgspec.Struct):
    """How the bytes of a connection travel. As it is made, the network is as good as none."""

    delay: float = 0.0
    slice: int = _PIECE
    rate: float | None = None
    cut_after: int | None = None


class Connection:
    """One client's way through the relay to the server."""

    def __init__(self, client: tuple[asyncio.StreamReader, asyncio.StreamWriter], line: _Line) -> None:
        self._client = client
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._line = line
        self._silent = False
        self._passed = 0
        self._over = asyncio.Event()

    @property
    def passed(self) -> int:
        """How many bytes have passed on it, both ways together."""
        return self._passed

    def cut(self) -> None:
        """Reset it, on both sides."""
        self._over.set()
        for _, writer in filter(None, (self._client, self._server)):
            writer.transport.abort()

    def half_open(self) -> None:
        """From now on neither side hears of the other, not even that it has closed; nothing is reset.

        What is sent is swallowed, as by a firewall that has forgotten the connection, or a cable that was pulled.
        """
        self._silent = True

    def slow(self, delay: float) -> None:
        """Let every piece travel `delay` seconds, each way; 0 is as before."""
        self._line.delay = delay

    def sliced(self, size: int | None) -> None:
        """Pass on at most `size` bytes at once, each way, so that a reader gets frames in parts; None is as before."""
        self._line.slice = size or _PIECE

    def limited(self, rate: float | None) -> None:
        """Pass on at most `rate` bytes a second, each way; None is as before."""
        self._line.rate = rate

    def cut_after(self, size: int | None) -> None:
        """Reset it once `size` more bytes have passed, both ways together: in the middle of what is under way."""
        self._line.cut_after = None if size is None else self._passed + size

    async def run(self, server_port: int) -> None:
        """Connect to the server and pass bytes on, until either side is gone or it is cut."""
        try:
            with contextlib.suppress(OSError):
                self._server = await asyncio.open_connection("127.0.0.1", server_port)
                (asks, to_client), (answers, to_server) = self._client, self._server
                await asyncio.gather(self._pass(asks, to_server), self._pass(answers, to_client))
        finally:
            self.cut()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either end is gone, then neither is of use."""
        with contextlib.suppress(OSError):
            while data := await reader.read(self._line.slice):
                await self._travel(len(data))
                if self._silent:
                    continue
                left = self._left()
                self._passed += len(data)
                writer.write(data[:left])
                await writer.drain()
                if left is not None and len(data) >= left:
                    break
        if self._silent:
            await self._over.wait()  # this end is gone, and the other is not to learn of it
        self.cut()

    async def _travel(self, size: int) -> None:
        line = self._line
        duration = line.delay + (size / line.rate if line.rate else 0.0)
        if line.slice < _PIECE:
            duration += _APART
        if duration:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), duration)

    def _left(self) -> int | None:
        """How many bytes may still pass."""
        return None if self._line.cut_after is None else max(0, self._line.cut_after - self._passed)


class Relay:
    """Passes bytes between a port of its own on 127.0.0.1 and a server's, both ways, and breaks them as asked.

    Without `port` it is a free one; with a context, clients come by TLS. What is asked of all connections holds for
    those that there are; `slow`, `sliced` and `limited` hold for new ones as well.
    """

    def __init__(self, server_port: int, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._server_port = server_port
        self._port = port
        self._tls = tls
        self._line = _Line()
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._listener: asyncio.Server

    @property
    def port(self) -> int:
        """Where clients connect."""
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Those that there are, the oldest first."""
        return tuple(self._connections)

    async def cut(self) -> None:
        """Reset every connection there is; new ones work."""
        for connection in self.connections:
            connection.cut()

    def half_open(self) -> None:
        """Make every connection there is fall silent without a reset; new ones work."""
        for connection in self.connections:
            connection.half_open()

    def slow(self, delay: float) -> None:
        """Let every piece travel `delay` seconds, each way; 0 is as before."""
        self._line.delay = delay
        self._each(lambda connection: connection.slow(delay))

    def sliced(self, size: int | None) -> None:
        """Pass on at most `size` bytes at once; None is as before."""
        self._line.slice = size or _PIECE
        self._each(lambda connection: connection.sliced(size))

    def limited(self, rate: float | None) -> None:
        """Pass on at most `rate` bytes a second, on each connection and each way; None is as before."""
        self._line.rate = rate
        self._each(lambda connection: connection.limited(rate))

    def cut_after(self, size: int | None) -> None:
        """Reset every connection there is once `size` more bytes have passed on it; new ones work."""
        self._each(lambda connection: connection.cut_after(size))

    def _each(self, change: Callable[[Connection], None]) -> None:
        for connection in self.connections:
            change(connection)

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._port, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        await self.cut()
        await asyncio.gather(*self._connections.values(), return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = Connection((reader, writer), msgspec.structs.replace(self._line))
        self._connections[connection] = task
        try:
            await connection.run(self._server_port)
        finally:
            del self._connections[connection]
