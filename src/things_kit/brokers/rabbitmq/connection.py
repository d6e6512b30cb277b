"""pika's connection, with shorter ways for what comes and goes by the thousand.

Private parts of pika are used here, so its versions are pinned in pyproject.toml; decision 16 lists them, and what each
way of ours has to do because pika's does it.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from pika import frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection

HEAD: Final = 7
"""Bytes before a frame's payload: its kind, its channel and its size."""

Begun: TypeAlias = list[Any]
"""The frames that came of a message whose body may be next: none, its method, or its method and its header."""


class Connection(AsyncioConnection):
    """Takes whole messages straight to their consumers, sends without ceremony, and can be left without an answer."""

    _frame_buffer: bytes
    _channels: dict[int, Any]
    bytes_received: int
    frames_received: int
    bytes_sent: int
    frames_sent: int

    @property
    def most(self) -> int:
        """Bytes of a body's frame."""
        return self._get_body_frame_max_length()  # type: ignore[attr-defined, no-any-return]

    def emit(self, frames: Sequence[bytes]) -> None:
        """Write frames that are marshalled already, at once: pika writes three times for each message."""
        data = b"".join(frames)
        self.bytes_sent += len(data)
        self.frames_sent += len(frames)
        self._adapter_emit_data(data)  # type: ignore[attr-defined]

    def abort(self) -> None:
        """Drop the stream after `close`, whose answer does not come."""
        self._adapter_disconnect_stream()  # type: ignore[attr-defined] # the extension point of pika's adapters

    def _on_data_available(self, data_in: bytes) -> None:
        """Decode each frame where it lies: pika copies all that is behind it, for each anew.

        Frames are counted as pika counts them: its check of heartbeats takes a connection for dead whose
        `bytes_received` stays the same.
        """
        data = self._frame_buffer + data_in
        self._frame_buffer = b""
        start, length = 0, len(data)
        begun: Begun = []
        while start + HEAD <= length:
            end = start + HEAD + int.from_bytes(data[start + 3 : start + HEAD], "big") + 1
            if data[start : start + 4] == b"AMQP" or end > length:
                break
            self.bytes_received += end - start
            if len(begun) == 2 and self._ends(begun, data, start, end):
                self._deliver(begun, data[start + HEAD : end - 1])
                begun = []
            else:
                value = frame.decode_frame(data[start:end])[1]
                if _goes_on(begun, value):
                    begun.append(value)
                else:
                    self._process_all([*begun, value])
                    begun = []
            start = end
        self._process_all(begun)
        if start < length:
            super()._on_data_available(data[start:])  # type: ignore[misc]

    def _ends(self, begun: Begun, data: bytes, start: int, end: int) -> bool:
        """Whether this frame is all of the body of the message that was begun."""
        method, header = begun
        return (
            data[start] == spec.FRAME_BODY
            and end - start - HEAD - 1 == header.body_size
            and int.from_bytes(data[start + 1 : start + 3], "big") == method.channel_number
            and data[end - 1] == spec.FRAME_END
            and method.channel_number in self._channels
        )

    def _deliver(self, begun: Begun, body: bytes) -> None:
        """Hand out a message at once, which pika would put together again from its frames."""
        self.frames_received += 3
        method, header = begun
        self._channels[method.channel_number]._on_deliver(method, header, body)  # noqa: SLF001 - where pika goes too

    def _process_all(self, values: Begun) -> None:
        for value in values:
            self._process_frame(value)  # type: ignore[attr-defined]


def _goes_on(begun: Begun, value: Any) -> bool:
    """Whether this is the next frame of a message: its method if none was begun, or the header that belongs to it."""
    if not begun:
        return type(value) is frame.Method and type(value.method) is spec.Basic.Deliver
    return (
        len(begun) == 1
        and type(value) is frame.Header
        and value.body_size > 0
        and value.channel_number == begun[0].channel_number
    )
