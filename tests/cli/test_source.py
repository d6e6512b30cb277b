"""Reading a file in a thread, which may be closed while the thread is about to read on."""

import asyncio
import io
import threading

from things_kit.cli.source import AHEAD, Source


class Closing(io.BytesIO):
    """Closed by another before the second read."""

    def __init__(self) -> None:
        super().__init__(b"one\ntwo\n")
        self.asked = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.asked += 1
        if self.asked == 2:
            self.close()
        return super().read(4)


async def test_a_stream_that_was_closed_meanwhile_has_ended() -> None:
    stream = Closing()
    before = threading.active_count()
    source = Source(stream)
    async with asyncio.timeout(10):
        assert [line async for lines in source.lines(10) for line in lines] == [b"one"]
    assert stream.asked == 2 < AHEAD
    assert threading.active_count() <= before + 1
