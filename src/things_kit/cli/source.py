"""A file or pipe as it comes, without holding up the event loop, and without more in memory than is needed."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import BinaryIO, Final, Protocol

from things_kit.messaging.errors import ThingsKitError

CHUNK: Final = 1 << 16
AHEAD: Final = 4
"""Chunks read before anybody asked for them."""
LONGEST_LINE: Final = 64 << 20
"""No broker takes a message of this size: input without line ends must not fill the memory."""


class Readable(Protocol):
    """What a chunk is read from: a raw, unbuffered file, so that a read returns what is there."""

    def read(self, size: int, /) -> bytes | None:
        """Up to `size` bytes, empty at the end."""


class Source:
    """Reads a stream in a thread of its own.

    `taken` counts the bytes that were handed out.

    The thread is a daemon: one that waits for a terminal or a pipe cannot be stopped, and must not keep the
    process alive.
    """

    def __init__(self, stream: Readable) -> None:
        self.taken = 0
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[bytes | OSError] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)
        self._ended = False
        threading.Thread(target=self._read, name="things-kit-source", daemon=True).start()

    def end(self) -> None:
        """Read no more. What was read is still handed out, but for a line that was not complete."""
        self._ended = True
        self._queue.put_nowait(b"")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, a piece at a time, as they come. Raises OSError if they cannot be read."""
        while chunk := await self._queue.get():
            if isinstance(chunk, OSError):
                raise chunk
            self._room.release()
            self.taken += len(chunk)
            yield chunk

    async def lines(self, most: int) -> AsyncIterator[list[bytes]]:
        """Complete lines without their ends, up to `most` at once; fewer when the stream pauses.

        Raises:
            ThingsKitError: A line never ends.
            OSError: The stream cannot be read.
        """
        rest = bytearray()
        async for chunk in self.chunks():
            rest += chunk
            if b"\n" in chunk:
                *lines, last = bytes(rest).split(b"\n")
                rest = bytearray(last)
                for start in range(0, len(lines), most):
                    yield [line.removesuffix(b"\r") for line in lines[start : start + most]]
            elif len(rest) > LONGEST_LINE:
                raise ThingsKitError(f"a line is longer than {LONGEST_LINE >> 20} MiB")
        if rest and not self._ended:
            yield [bytes(rest).removesuffix(b"\r")]

    def _read(self) -> None:
        while self._room.acquire() and not self._ended:
            try:
                chunk = self._stream.read(CHUNK) or b""
            except OSError as error:
                return self._give(error)
            except ValueError:  # closed by whoever opened it, who wants no more
                chunk = b""
            self._give(chunk)
            if not chunk:
                return None
        return None

    def _give(self, item: bytes | OSError) -> None:
        # The loop is closed once nobody listens any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)


def unbuffered(stream: BinaryIO) -> Readable:
    """The raw file beneath a buffered one, where it has one: a test's has none."""
    raw: Readable = getattr(stream, "raw", stream)
    return raw
