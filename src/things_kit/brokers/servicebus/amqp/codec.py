"""The types of AMQP 1.0, part 1 of its standard: bytes to values, and back.

Whatever its type, a value that is well-formed can be read past: the first half of its constructor says how long it is. So one of
a type that has no counterpart in Python is `UNREAD`, and costs nothing of what is around it.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from struct import Struct, pack
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

Decoded: TypeAlias = tuple[Any, int]
"""A value, and where it ends."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)


class Symbol(str):
    """A word of the protocol, in ASCII."""

    __slots__ = ()


class Encoded(bytes):
    """A value as it is written, such as an integer of another type than `int`, which is a signed one of 64 bits."""

    __slots__ = ()


def ubyte(value: int) -> Encoded:
    """An unsigned integer of 8 bits."""
    return Encoded((0x50, value))


def ushort(value: int) -> Encoded:
    """An unsigned integer of 16 bits."""
    return Encoded(pack(">BH", 0x60, value))


def uint(value: int) -> Encoded:
    """An unsigned integer of 32 bits."""
    return Encoded(pack(">BI", 0x70, value))


class Described(NamedTuple):
    """A value, and the number (or, of those that come, perhaps the symbol) that says what it is."""

    descriptor: Any
    value: Any


class Unread:
    """A value that was read past."""

    def __repr__(self) -> str:
        return "UNREAD"


UNREAD: Final = Unread()


class MalformedError(ValueError):
    """These bytes are no value."""


# --- reading


def decode(data: bytes, at: int = 0) -> Decoded:
    """The value that begins there. Raises MalformedError."""
    try:
        return _decode(data, at)
    except (LookupError, RecursionError, ValueError) as error:
        raise MalformedError(f"there is no value of AMQP at byte {at} of {len(data)}") from error


def skip(data: bytes, at: int) -> int:
    """Where the value ends that begins there. Raises MalformedError."""
    try:
        while not data[at]:
            at = skip(data, at + 1)
        return _extent(data, at + 1, data[at])[1]
    except (LookupError, RecursionError) as error:
        raise MalformedError(f"there is no value of AMQP at byte {at} of {len(data)}") from error


def sections(payload: bytes) -> Iterator[tuple[int, Any]]:
    """The parts of a message, by their numbers; one that cannot be read is `UNREAD`. Raises MalformedError."""
    at = 0
    while at < len(payload):
        end = skip(payload, at)
        try:
            section, _ = decode(payload, at)
        except MalformedError:
            section = Described(payload[at + 2], UNREAD)
        if isinstance(section, Described):
            yield section
        at = end


def _decode(data: bytes, at: int) -> Decoded:
    code = data[at]
    if code:
        return _value(data, at + 1, code)
    descriptor, at = _decode(data, at + 1)
    value, at = _decode(data, at)
    return Described(descriptor, value), at


def _value(data: bytes, at: int, code: int) -> Decoded:
    start, end = _extent(data, at, code)
    read = _READERS.get(code)
    return UNREAD if read is None else read(data, start, end), end


def _extent(data: bytes, at: int, code: int) -> tuple[int, int]:
    """Where the content of a value begins, behind its size, and where it ends."""
    width = code >> 4
    if width < 0xA:
        end = at + _WIDTHS[width]
    elif width & 1:
        at, end = at + 4, at + 4 + int.from_bytes(data[at : at + 4], "big")
    else:
        at, end = at + 1, at + 1 + data[at]
    if end > len(data):
        raise IndexError(end)
    return at, end


_WIDTHS: Final = {4: 0, 5: 1, 6: 2, 7: 4, 8: 8, 9: 16}
_WIDE: Final = 0x10
"""Added to a constructor whose sizes have one byte, it is that whose sizes have four."""


def _unsigned(data: bytes, start: int, end: int) -> int:
    return int.from_bytes(data[start:end], "big")


def _signed(data: bytes, start: int, end: int) -> int:
    return int.from_bytes(data[start:end], "big", signed=True)


def _float(form: Struct, data: bytes, start: int, _: int) -> Any:
    return form.unpack_from(data, start)[0]


def _char(data: bytes, start: int, end: int) -> Any:
    number = _unsigned(data, start, end)
    return chr(number) if number < 0xD800 or 0xDFFF < number < 0x110000 else UNREAD


def _timestamp(data: bytes, start: int, end: int) -> Any:
    try:
        return EPOCH + _signed(data, start, end) * MILLISECOND
    except OverflowError:  # outside of Python's calendar
        return UNREAD


def _text(kind: type[str], data: bytes, start: int, end: int) -> str:
    return kind(data[start:end].decode(errors="backslashreplace"))


def _count(data: bytes, start: int, size: int) -> tuple[int, int]:
    return int.from_bytes(data[start : start + size], "big"), start + size


def _list(size: int, data: bytes, start: int, end: int) -> list[Any]:
    count, at = _count(data, start, size)
    items = []
    for _ in range(count):
        item, at = _decode(data, at)
        items.append(item)
    if at > end:
        raise IndexError(at)
    return items


def _map(size: int, data: bytes, start: int, end: int) -> dict[Any, Any]:
    items = _list(size, data, start, end)
    pairs = zip(items[::2], items[1::2], strict=True)
    return {name: value for name, value in pairs if not isinstance(name, list | dict | Described | Unread)}


def _array(size: int, data: bytes, start: int, end: int) -> list[Any]:
    count, at = _count(data, start, size)
    while not data[at]:
        at = skip(data, at + 1)  # what describes each of its elements
    code, at, items = data[at], at + 1, []
    for _ in range(
        count if code >> 4 != 4 else min(count, end)
    ):  # elements without bytes cost the sender nothing
        item, at = _value(data, at, code)
        items.append(item)
    if at > end:
        raise IndexError(at)
    return items


_READERS: Final[dict[int, Callable[[bytes, int, int], Any]]] = {
    0x40: lambda *_: None, 0x41: lambda *_: True, 0x42: lambda *_: False, 0x45: lambda *_: [],
    0x56: lambda data, start, _: data[start] != 0,
    **dict.fromkeys((0x43, 0x44, 0x50, 0x52, 0x53, 0x60, 0x70, 0x80), _unsigned),
    **dict.fromkeys((0x51, 0x54, 0x55, 0x61, 0x71, 0x81), _signed),
    0x72: partial(_float, Struct(">f")), 0x82: partial(_float, Struct(">d")),
    0x73: _char, 0x83: _timestamp, 0x98: lambda data, start, end: UUID(bytes=data[start:end]),
    **dict.fromkeys((0xA0, 0xB0), lambda data, start, end: data[start:end]),
    **dict.fromkeys((0xA1, 0xB1), partial(_text, str)), **dict.fromkeys((0xA3, 0xB3), partial(_text, Symbol)),
    0xC0: partial(_list, 1), 0xD0: partial(_list, 4), 0xC1: partial(_map, 1), 0xD1: partial(_map, 4),
    0xE0: partial(_array, 1), 0xF0: partial(_array, 4),
}  # fmt: skip


# --- writing


def encode(value: Any) -> bytes:
    """A value in its own type; a sequence is a list, and a tuple an array. Raises TypeError for what has no type here."""
    kind = type(value)
    write = _WRITERS.get(kind) or next((_WRITERS[base] for base in kind.__mro__ if base in _WRITERS), None)
    if write is None:
        raise TypeError(f"AMQP has no {kind.__name__}")
    return write(value)


def _sized(code: int, content: bytes) -> bytes:
    size = len(content)
    return (bytes((code, size)) if size < 256 else pack(">BI", code + _WIDE, size)) + content


def _several(code: int, items: Iterable[bytes], between: bytes = b"") -> bytes:
    parts = [*items]
    content, count = between + b"".join(parts), len(parts)
    if len(content) < 255 and count < 256:
        return bytes((code, len(content) + 1, count)) + content
    return pack(">BII", code + _WIDE, len(content) + 4, count) + content


def _dict(value: dict[Any, Any]) -> bytes:
    items = [encode(part) for pair in value.items() for part in pair]
    return _several(0xC1, items)


def _tuple(value: tuple[Any, ...]) -> bytes:
    """An array: of UUIDs, whose constructor all elements share."""
    return _several(0xE0, [each.bytes for each in value], b"\x98")


_WRITERS: Final[dict[type, Callable[[Any], bytes]]] = {
    type(None): lambda _: b"\x40",
    bool: lambda value: b"\x41" if value else b"\x42",
    Encoded: bytes,
    int: partial(pack, ">Bq", 0x81), float: partial(pack, ">Bd", 0x82),
    datetime: lambda value: pack(">Bq", 0x83, (value - EPOCH) // MILLISECOND),
    UUID: lambda value: b"\x98" + value.bytes,
    bytes: partial(_sized, 0xA0),
    str: lambda value: _sized(0xA1, value.encode()), Symbol: lambda value: _sized(0xA3, value.encode("ascii")),
    list: lambda value: _several(0xC0, map(encode, value)), dict: _dict, tuple: _tuple,
    Described: lambda value: bytes((0, 0x53, value.descriptor)) + encode(value.value),
}  # fmt: skip
