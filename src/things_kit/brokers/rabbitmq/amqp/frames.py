"""Frames of AMQP 0-9-1, as they are written."""

import struct
from typing import Any, Final, NamedTuple

from pika import spec

END: Final = bytes([spec.FRAME_END])

FRAME: Final = struct.Struct(">BHI")
"""Kind, channel and size of the payload."""

METHOD: Final = struct.Struct(">I")
"""Class and number of a method."""

HEADER: Final = struct.Struct(">HxxQ")
"""Class of a message's properties, and size of its body."""


class Content(NamedTuple):
    """A message that was asked for."""

    method: Any
    properties: spec.BasicProperties
    body: bytes


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """A frame as it is written."""
    return FRAME.pack(kind, channel, len(payload)) + payload + END


def method_frame(channel: int, method: Any) -> bytes:
    """The frame of a method."""
    return frame(spec.FRAME_METHOD, channel, METHOD.pack(method.INDEX) + b"".join(method.encode()))


def content_frames(channel: int, properties: spec.BasicProperties, body: bytes, most: int) -> list[bytes]:
    """The frames behind the method of a message, of which none is larger than `most` bytes."""
    head = HEADER.pack(properties.INDEX, len(body)) + b"".join(properties.encode())
    room = most - FRAME.size - 1
    parts = (body[start : start + room] for start in range(0, len(body), room))
    return [
        frame(spec.FRAME_HEADER, channel, head),
        *(frame(spec.FRAME_BODY, channel, part) for part in parts),
    ]
