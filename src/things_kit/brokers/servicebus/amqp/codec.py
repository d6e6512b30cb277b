"""The types of AMQP 1.0, part 1 of its standard: bytes to values, and back.

Whatever its type, a value that is well-formed can be read past: the first half of its constructor says how long it is. So one of
a type that has no counterpart in Python costs nothing of what is around it: it is None, and in a map it is left out.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from struct import Struct, pack
from typing import Any, Final, NamedTuple
from uuid import UUID

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


def uint(value: int) -> Encoded:
    """An unsigned integer of 32 bits."""
    return Encoded(pack(">BI", 0x70, value))


class Described(NamedTuple):
    """A value, and the number (or, of those that come, perhaps the symbol) that says what it is."""

    descriptor: Any
    value: Any


class MalformedError(ValueError):
    """These bytes are no value."""


# --- reading

UNREAD: Final = object()
"""What Python has no value for."""


def decode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """The value that begins there, and where it ends. Raises MalformedError."""
    try:
        value, end = _decode(data, at)
    except (LookupError, RecursionError, ValueError) as error:
        raise MalformedError(f"there is no value of AMQP at byte {at} of {len(data)}") from error
    return None if value is UNREAD else value, end


def skip(data: bytes, at: int = 0) -> int:
    """Where the value ends that begins there, whatever is in it. Raises MalformedError."""
    try:
        while not data[at]:
            at = skip(data, at + 1)
        return _extent(data, at + 1, data[at])[1]
    except (LookupError, RecursionError) as error:
        raise MalformedError(f"there is no value of AMQP at byte {at} of {len(data)}") from error


def sections(payload: bytes) -> Iterator[Described]:
    """The parts of a message, but for those that cannot be read. Raises MalformedError."""
    at = 0
    while at < len(payload):
        try:
            section, at = decode(payload, at)
        except MalformedError:
            at = skip(payload, at)
            continue
        if isinstance(section, Described):
            yield section


def _decode(data: bytes, at: int) -> tuple[Any, int]:
    if data[at]:
        return _value(data, at + 1, data[at])
    descriptor, at = _decode(data, at + 1)
    value, at = _decode(data, at)
    return Described(descriptor, None if value is UNREAD else value), at


def _value(data: bytes, at: int, code: int) -> tuple[Any, int]:
    start, end = _extent(data, at, code)
    read = _READERS.get(code)
    return UNREAD if read is None else read(data[start:end]), end


def _extent(data: bytes, at: int, code: int) -> tuple[int, int]:
    """Where the content of a value begins, behind its size, and where it ends."""
    width, start = code >> 4, at
    if width < 0xA:
        end = start + _WIDTHS[width]
    else:
        start += 4 if width & 1 else 1
        end = start + int.from_bytes(data[at:start], "big")
    if end > len(data):
        raise IndexError(end)
    return start, end


_WIDTHS: Final = {4: 0, 5: 1, 6: 2, 7: 4, 8: 8, 9: 16}


def _number(form: str) -> Callable[[bytes], Any]:
    unpack = Struct(f">{form}").unpack
    return lambda content: unpack(content)[0]


def _char(content: bytes) -> Any:
    number = int.from_bytes(content, "big")
    return chr(number) if number < 0xD800 or 0xDFFF < number < 0x110000 else UNREAD


def _timestamp(content: bytes) -> Any:
    try:
        return EPOCH + int.from_bytes(content, "big", signed=True) * MILLISECOND
    except OverflowError:  # outside of Python's calendar
        return UNREAD


def _text(kind: type[str], content: bytes) -> str:
    return kind(content.decode(errors="backslashreplace"))


def _items(size: int, content: bytes) -> list[Any]:
    items, at = [], size
    for _ in range(int.from_bytes(content[:size], "big")):
        item, at = _decode(content, at)
        items.append(item)
    return items


def _list(size: int, content: bytes) -> list[Any]:
    return [None if item is UNREAD else item for item in _items(size, content)]


def _map(size: int, content: bytes) -> dict[Any, Any]:
    items = _items(size, content)
    pairs = zip(items[::2], items[1::2], strict=True)
    return {name: value for name, value in pairs if type(name) in _NAMES and value is not UNREAD}


_NAMES: Final = {type(None), bool, int, float, str, bytes, datetime, UUID, Symbol}
"""Types of what may name something in a map of Python's."""


def _array(size: int, content: bytes) -> list[Any]:
    at, items = size, []
    while not content[at]:
        at = skip(content, at + 1)  # what describes each of its elements
    code, at = content[at], at + 1
    count = int.from_bytes(content[:size], "big")
    for _ in range(min(count, len(content))):  # elements without bytes would cost the sender nothing
        item, at = _value(content, at, code)
        items.append(None if item is UNREAD else item)
    return items


_READERS: Final[dict[int, Callable[[bytes], Any]]] = {
    0x40: lambda _: None, 0x41: lambda _: True, 0x42: lambda _: False, 0x56: lambda content: content != b"\0",
    0x43: lambda _: 0, 0x44: lambda _: 0, 0x50: _number("B"), 0x52: _number("B"), 0x53: _number("B"),
    0x60: _number("H"), 0x70: _number("I"), 0x80: _number("Q"),
    0x51: _number("b"), 0x54: _number("b"), 0x55: _number("b"),
    0x61: _number("h"), 0x71: _number("i"), 0x81: _number("q"), 0x72: _number("f"), 0x82: _number("d"),
    0x73: _char, 0x83: _timestamp, 0x98: lambda content: UUID(bytes=content), 0xA0: bytes, 0xB0: bytes,
    0xA1: partial(_text, str), 0xB1: partial(_text, str), 0xA3: partial(_text, Symbol), 0xB3: partial(_text, Symbol),
    0x45: lambda _: [], 0xC0: partial(_list, 1), 0xD0: partial(_list, 4),
    0xC1: partial(_map, 1), 0xD1: partial(_map, 4), 0xE0: partial(_array, 1), 0xF0: partial(_array, 4),
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
    return (bytes((code, size)) if size < 256 else pack(">BI", code + 0x10, size)) + content


def _several(code: int, items: Iterable[bytes], between: bytes = b"") -> bytes:
    parts = [*items]
    content = between + b"".join(parts)
    if len(content) < 255 and len(parts) < 256:
        return bytes((code, len(content) + 1, len(parts))) + content
    return pack(">BII", code + 0x10, len(content) + 4, len(parts)) + content


_WRITERS: Final[dict[type, Callable[[Any], bytes]]] = {
    type(None): lambda _: b"\x40",
    bool: lambda value: b"\x41" if value else b"\x42",
    Encoded: bytes,
    int: partial(pack, ">Bq", 0x81), float: partial(pack, ">Bd", 0x82),
    datetime: lambda value: pack(">Bq", 0x83, (value - EPOCH) // MILLISECOND),
    UUID: lambda value: b"\x98" + value.bytes,
    bytes: partial(_sized, 0xA0),
    str: lambda value: _sized(0xA1, value.encode()), Symbol: lambda value: _sized(0xA3, value.encode("ascii")),
    list: lambda value: _several(0xC0, map(encode, value)),
    dict: lambda value: _several(0xC1, [encode(part) for pair in value.items() for part in pair]),
    tuple: lambda value: _several(0xE0, [each.bytes for each in value], b"\x98"),  # of UUIDs, which share their constructor
    Described: lambda value: bytes((0, 0x53, value.descriptor)) + encode(value.value),
}  # fmt: skip
