"""A way to a server that is far off: `python -m benchmarks.distance PORT LISTEN SECONDS`, in a process of its own.

Every byte arrives so many seconds later, each way; as on a real line, what is sent meanwhile is under way beside it.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from things_kit.testing.servers.process import free_ports


class End(asyncio.Protocol):
    """One end of a connection. What comes in here leaves at the other end, later."""

    def __init__(self, delay: float) -> None:
        self.other: End | None = None
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        self._underway: deque[tuple[float, bytes | None]] = deque()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._send(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._send(None)

    def _send(self, data: bytes | None) -> None:
        """Let it travel; None is the end."""
        self._underway.append((self._loop.time() + self._delay, data))
        if len(self._underway) == 1:
            self._loop.call_later(self._delay, self._arrive)

    def _arrive(self) -> None:
        """Hand on all that has travelled; one timer at a time keeps the order."""
        now = self._loop.time()
        while self._underway:
            due, data = self._underway[0]
            if due > now:
                self._loop.call_at(due, self._arrive)
                return
            self._underway.popleft()
            if self.other is not None:
                self.other.leave(data)

    def leave(self, data: bytes | None) -> None:
        """Send it off on this end."""
        if self._transport is None:
            return
        if data is None:
            self._transport.close()
        else:
            self._transport.write(data)


class Client(End):
    """The end that clients see; it connects to the server."""

    def __init__(self, port: int, delay: float) -> None:
        super().__init__(delay)
        self._port = port
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # until there is somebody to send it to
        self._connecting = self._loop.create_task(self._connect(transport))

    async def _connect(self, transport: asyncio.Transport) -> None:
        try:
            _, server = await self._loop.create_connection(lambda: End(self._delay), "127.0.0.1", self._port)
        except OSError:
            transport.abort()
            return
        self.other, server.other = server, self
        transport.resume_reading()


async def serve(port: int, listen: int, delay: float) -> None:
    """Until it is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Client(port, delay), "127.0.0.1", listen)
    print("ready", flush=True)
    await server.serve_forever()


@asynccontextmanager
async def far(port: int, delay: float, listen: int = 0) -> AsyncIterator[int]:
    """The port of a way to that one which takes `delay` seconds; `listen` says which it is to be."""
    listen = listen or free_ports(1)[0]
    command = [sys.executable, "-m", "benchmarks.distance", str(port), str(listen), str(delay)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield listen
    finally:
        process.terminate()
        await process.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
