"""An AMQP connection of the client's, read by one task of its own.

With the client alone, whoever waits for something reads the socket, under a lock that writing needs as well: an answer that
another has read, and all that is to be written, then waits for a socket timeout to pass. Here one task reads, always;
who waits is woken when frames were processed, and who writes does not wait for who reads.
"""

import asyncio
import contextlib
import time
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from azure.servicebus._pyamqp.aio._connection_async import Connection
from azure.servicebus._pyamqp.error import AMQPConnectionError, ErrorCondition

PULSE: Final = 15.0
"""Seconds after which a connection on which nothing comes looks whether it must say that it is still there. The service
hangs up after four minutes."""


class Wire(Connection):
    """A connection whose frames are processed as they come, whoever waits for them."""

    def __init__(self, endpoint: str, **options: Any) -> None:
        super().__init__(endpoint, **options)  # type: ignore[no-untyped-call, unused-ignore]
        self._transport.write = partial(_write, self._transport)  # type: ignore[method-assign]
        self._reading: asyncio.Task[None] | None = None
        self._processed = asyncio.Event()
        self._turn = 0
        self._at_end: WeakSet[asyncio.Event] = WeakSet()
        self._seen: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()

    @property
    def trouble(self) -> Exception | None:
        """What the connection ended with."""
        if self._error is None and not self.usable:
            return AMQPConnectionError(
                ErrorCondition.ConnectionCloseForced, description="Connection was closed."
            )
        return self._error

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as is known."""
        return self._error is None and self._reading is not None and not self._reading.done()

    async def open(self, wait: bool = False) -> None:
        """Connect, and begin to read."""
        await super().open(wait)
        self._reading = asyncio.create_task(self._read(), name="things_kit servicebus connection")

    async def _read(self) -> None:
        """Process what comes until the connection ends."""
        transport: Any = self._transport
        try:
            while self._error is None and self._can_read():
                frame: Any = None, None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PULSE):
                        frame = await transport.receive_frame()
                if frame == (None, None):
                    await self._get_remote_timeout(time.time())
                else:
                    await self._process_incoming_frame(*frame)
                    self._tell()
        except Exception as error:  # noqa: BLE001 - also what the client makes of a frame that it does not understand
            self._error = self._error or AMQPConnectionError(
                ErrorCondition.SocketError,
                description=f"Can not read frame due to exception: {error}",
                error=error,
            )
        finally:
            self._tell()
            for event in self._at_end:
                event.set()

    def tell_at_end(self, event: asyncio.Event) -> None:
        """Have an event set when the connection ends."""
        self._at_end.add(event)

    def _tell(self) -> None:
        """Wake all who wait; they come to it when all that is here was processed."""
        self._turn += 1
        self._processed.set()
        self._processed = asyncio.Event()

    async def listen(self, wait: float | bool = False, batch: int = 1, **options: Any) -> None:
        """Wait until something was processed since the task last asked. Raises what the connection ended with."""
        reading, task = self._reading, asyncio.current_task()
        if reading is None or reading.done() or task is None:
            if self._error is None:
                await super().listen(wait=wait, batch=batch, **options)
            if self._error is not None:
                raise self._error
            return
        if self._seen.get(task) == self._turn and task is not reading:
            timeout = self._socket_timeout if wait is False else None if wait is True else wait
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._processed.wait()
        self._seen[task] = self._turn
        if self._error is not None:
            raise self._error

    async def _incoming_close(self, channel: int, frame: Any) -> None:
        """Whoever hangs up need not say more than why; the client expects all three fields of an error."""
        if frame[0]:
            frame = [[*frame[0], None, None][:3], *frame[1:]]
        await super()._incoming_close(channel, frame)

    async def _disconnect(self) -> None:
        await self.stop()
        await super()._disconnect()

    async def stop(self) -> None:
        """Read no more."""
        reading, self._reading = self._reading, None
        if reading is not None and reading is not asyncio.current_task():
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def hang_up(self) -> None:
        """Close the socket, if it is still open, whatever waits for it."""
        await self.stop()
        transport: Any = self._transport
        writer = getattr(transport, "writer", None)
        if writer is not None:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        elif getattr(transport, "sock", None) is not None and transport.connected:  # a websocket
            with contextlib.suppress(OSError):
                await transport.close()


async def _write(transport: Any, data: bytes) -> None:
    """Write without waiting for who reads; each frame is written at once, so no two of them mix."""
    try:
        await transport._write(data)  # noqa: SLF001
    except OSError:
        transport.connected = False
        raise
