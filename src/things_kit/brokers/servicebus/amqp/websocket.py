"""AMQP through port 443, where firewalls let nothing else pass: a websocket that is a transport of asyncio's."""

import asyncio
import contextlib
import ssl

from aiohttp import ClientError, ClientSession, ClientWebSocketResponse

from things_kit.brokers.servicebus.amqp.connection import Connection
from things_kit.engine.cancelling import ended

PATH = "/$servicebus/websocket"
TASK = "things_kit servicebus websocket"


class WebSocket(asyncio.Transport):
    """Hands what comes to a connection, and sends what it writes."""

    def __init__(
        self, session: ClientSession, socket: ClientWebSocketResponse, connection: Connection
    ) -> None:
        super().__init__()
        self._session = session
        self._socket = socket
        self._connection = connection
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks = [asyncio.create_task(work, name=TASK) for work in (self._read(), self._send())]
        self._ending: asyncio.Task[None] | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, in order, without waiting."""
        self._out.put_nowait(bytes(data))

    def abort(self) -> None:
        """Close at once."""
        if self._ending is None:  # a task of its own, as those that end may be who says so
            self._ending = asyncio.create_task(self._end(), name=TASK)

    async def _read(self) -> None:
        async for message in self._socket:
            self._connection.data_received(message.data)
        self.abort()

    async def _send(self) -> None:
        with contextlib.suppress(ClientError, OSError):
            while True:
                await self._socket.send_bytes(await self._out.get())
        self.abort()

    async def _end(self) -> None:
        await ended(*self._tasks)
        await self._session.close()
        self._connection.connection_lost(None)


async def over_websocket(connection: Connection, host: str, port: int, tls: ssl.SSLContext | None) -> None:
    """Connect. Raises OSError."""
    session = ClientSession()
    url = f"{'wss' if tls else 'ws'}://{host}:{port}{PATH}"
    try:
        socket = await session.ws_connect(url, protocols=("AMQPWSB10",), ssl=tls or False, max_msg_size=0)
    except BaseException as error:
        await session.close()
        if isinstance(error, ClientError) and not isinstance(error, OSError):
            raise ConnectionError(str(error)) from error
        raise
    connection.connection_made(WebSocket(session, socket, connection))
