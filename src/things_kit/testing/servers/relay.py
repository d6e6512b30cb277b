"""A way to a server that a test can cut: the server stays, its connections break."""

import asyncio
import contextlib
import ssl
from types import TracebackType
from typing import Self


class Relay:
    """Passes bytes between a port of its own on 127.0.0.1 and a server's, both ways.

    Without `port` it is a free one; with a context, clients come by TLS.
    """

    def __init__(self, server_port: int, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._server_port = server_port
        self._port = port
        self._tls = tls
        self._open: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server

    @property
    def port(self) -> int:
        """Where clients connect."""
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def cut(self) -> None:
        """Break every connection there is; new ones work."""
        for writer in list(self._open):
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._port, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        await self.cut()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing = asyncio.current_task()
        assert passing is not None
        self._passing.add(passing)
        self._open.add(writer)
        server: asyncio.StreamWriter | None = None
        try:
            with contextlib.suppress(OSError):
                answers, server = await asyncio.open_connection("127.0.0.1", self._server_port)
                self._open.add(server)
                await asyncio.gather(_pass(reader, server), _pass(answers, writer))
        finally:
            for end in (writer, server):
                if end is not None:
                    end.transport.abort()
                    self._open.discard(end)
            self._passing.discard(passing)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until either end is gone, then neither is of use."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
