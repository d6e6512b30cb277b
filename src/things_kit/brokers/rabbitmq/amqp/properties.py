"""A message's properties and headers as AMQP has them, read so that nothing in them can stop a connection.

pika raises for what another program may well have written: a timestamp outside the calendar (milliseconds are of the year
50,000), a number that is none or infinite, a kind that it does not know, tables too deep for its recursion. The message would
come again over the next connection, and end that as well. It cuts floats to whole numbers, too.
"""

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from pika.spec import BasicProperties

DEEPEST: Final = 32
"""Tables and arrays in one another that are read; what lies deeper is handed over as bytes."""

_TEXT: Final = ord("S")
_FLAGS: Final = struct.Struct(">H")
_SIZE: Final = struct.Struct(">I")
_SECONDS: Final = struct.Struct(">Q")

_NUMBERS: Final = {
    ord(kind): struct.Struct(f">{form}")
    for kind, form in {
        "b": "b", "B": "B", "s": "h", "U": "h", "u": "H", "I": "i", "i": "I", "l": "q", "L": "q", "f": "f", "d": "d", "t": "?",
    }.items()
}  # fmt: skip

_PROPERTIES: Final = (
    (15, "content_type"), (14, "content_encoding"), (13, "headers"), (12, "delivery_mode"), (11, "priority"),
    (10, "correlation_id"), (9, "reply_to"), (8, "expiration"), (7, "message_id"), (6, "timestamp"), (5, "type"),
    (4, "user_id"), (3, "app_id"), (2, "cluster_id"),
)  # fmt: skip
"""In the order in which they follow one another, each with the bit that says that it is there."""


def read_properties(data: bytes) -> BasicProperties:
    """What a frame has of them, from their flags on. Of properties that are cut off, those before the cut."""
    properties, start = BasicProperties(), 0
    try:
        flags = more = _FLAGS.unpack_from(data, start)[0]
        start += 2
        while more & 1:  # none of the properties that these would speak of is defined
            more = _FLAGS.unpack_from(data, start)[0]
            start += 2
        for bit, name in _PROPERTIES:
            if flags >> bit & 1:
                value, start = _property(name, data, start)
                setattr(properties, name, value)
    except (struct.error, IndexError):
        pass
    return properties


def _property(name: str, data: bytes, start: int) -> tuple[Any, int]:
    if name == "headers":
        size = _SIZE.unpack_from(data, start)[0]
        start += 4
        return _table(data, start, start + size, 0), start + size
    if name == "timestamp":
        return _SECONDS.unpack_from(data, start)[0], start + 8
    if name in {"delivery_mode", "priority"}:
        return data[start], start + 1
    end = start + 1 + data[start]
    return _text(data[start + 1 : end]), end


def _table(data: bytes, start: int, end: int, depth: int) -> dict[str | bytes, Any]:
    table: dict[str | bytes, Any] = {}
    while start < end:
        begins = start + 1 + data[start]
        name = _text(data[start + 1 : begins])
        if data[begins] == _TEXT:  # as nearly all are
            start = begins + 5 + _SIZE.unpack_from(data, begins + 1)[0]
            table[name] = _text(data[begins + 5 : start])
        else:
            table[name], start = _field(data, begins, end, depth)
    return table


def _field(data: bytes, start: int, end: int, depth: int) -> tuple[Any, int]:
    """A value and where the next one begins: of a kind that nobody knows, all that is left."""
    kind, begins = chr(data[start]), start + 1
    if (number := _NUMBERS.get(data[start])) is not None:
        return number.unpack_from(data, begins)[0], begins + number.size
    match kind:
        case "V":
            return None, begins
        case "D":
            return Decimal(struct.unpack_from(">i", data, begins + 1)[0]).scaleb(-data[begins]), begins + 5
        case "T":
            return _moment(_SECONDS.unpack_from(data, begins)[0]), begins + 8
        case "S" | "x" | "A" | "F":
            begins += 4
            stop = begins + _SIZE.unpack_from(data, start + 1)[0]
            return _sized(kind, data, begins, stop, depth), stop
        case _:
            return data[start:end], end


def _sized(kind: str, data: bytes, start: int, stop: int, depth: int) -> Any:
    if kind == "S":
        return _text(data[start:stop])
    if kind == "x" or depth >= DEEPEST:
        return data[start:stop]
    if kind == "F":
        return _table(data, start, stop, depth + 1)
    values = []
    while start < stop:
        value, start = _field(data, start, stop, depth + 1)
        values.append(value)
    return values


def _text(encoded: bytes) -> str | bytes:
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded


def _moment(seconds: int) -> datetime | int:
    """A time, or its number where the calendar does not go so far."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return seconds
