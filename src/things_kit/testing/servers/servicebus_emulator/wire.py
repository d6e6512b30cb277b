"""Messages as they are on the wire: batches taken apart, and what the service adds to a message."""

import base64
import hashlib
import hmac
from typing import Any, Final
from urllib.parse import parse_qs

from cproton import ffi, lib
from proton import Message, int32, symbol, timestamp

from things_kit.testing.servers.servicebus_emulator.entities import Entry, Envelope

DATA: Final = 0x75
LIST8: Final = 0xC0
LIST0: Final = 0x45
DUE: Final = symbol("x-opt-scheduled-enqueue-time")
PARTS: Final = range(0x70, 0x79)


def own(value: Any) -> Any:
    """A copy of what Proton hands out as views into its buffers."""
    if isinstance(value, memoryview):
        return bytes(value)
    if type(value) is dict:
        return {own(name): own(each) for name, each in value.items()}
    return value


def decoded(raw: bytes) -> Message:
    """A message from its bytes."""
    message = Message()
    message.decode(raw)
    message.body, message.properties = own(message.body), own(message.properties)
    message.annotations, message.id = own(message.annotations), own(message.id)
    return message


def envelope(raw: bytes) -> Envelope:
    """What the service looks at."""
    message: Any = decoded(raw)
    due = (message.annotations or {}).get(DUE)
    properties = {str(name): value for name, value in (message.properties or {}).items()}
    identity = None if message.id is None else str(message.id)
    return Envelope(identity, message.group_id, (due or 0) / 1000, properties)


def encoded(entry: Entry) -> bytes:
    """A message as it is delivered: with its number, times and count of deliveries."""
    message = decoded(entry.content)
    annotations = dict(message.annotations or {})
    annotations[symbol("x-opt-sequence-number")] = entry.number
    annotations[symbol("x-opt-enqueue-sequence-number")] = entry.number
    annotations[symbol("x-opt-enqueued-time")] = timestamp(int(entry.since * 1000))
    annotations[symbol("x-opt-locked-until")] = timestamp(int(entry.until * 1000))
    annotations[symbol("x-opt-message-state")] = int32(0)
    message.annotations = annotations
    # Proton leaves out a header that has nothing but defaults; the client wants to see the count
    header = b"\x41\x40\x40\x40\x70" + entry.count.to_bytes(4, "big")
    return b"\0Sp\xc0" + bytes([len(header) + 1, 5]) + header + _without_header(message.encode())


def _without_header(raw: bytes) -> bytes:
    if raw[:3] != b"\0Sp":
        return raw
    return raw[_end_of(raw, 3) :]


def _end_of(raw: bytes, start: int) -> int:
    """Where a list or map ends."""
    kind = raw[start]
    if kind == LIST0:
        return start + 1
    if kind in {LIST8, 0xC1, 0xA0}:
        return start + 2 + raw[start + 1]
    return start + 5 + int.from_bytes(raw[start + 1 : start + 5], "big")


def messages_of(raw: bytes) -> list[bytes]:
    """The messages of a batch, each of which is a data section; a message that is none is itself."""
    found, place = [], 0
    while raw[place : place + 2] == b"\0S":
        end = _end_of(raw, place + 3)
        if raw[place + 2] == DATA:
            start = place + 5 if raw[place + 3] == 0xA0 else place + 8
            inner = raw[start:end]
            if inner[:2] != b"\0S" or inner[2] not in PARTS:
                return [raw]
            found.append(inner)
        place = end
    return found or [raw]


def tag_of(delivery: Any) -> bytes:
    """A delivery's tag; Proton's own accessor takes it for text."""
    tag = lib.pn_delivery_tag(delivery._impl)  # noqa: SLF001
    return bytes(ffi.unpack(tag.start, tag.size))


def identity(endpoint: Any) -> int:
    """Tells one of Proton's endpoints from another, as it wraps them anew each time."""
    return int(ffi.cast("uintptr_t", endpoint._impl))  # noqa: SLF001


class Login:
    """The one key that is let in."""

    def __init__(self, name: str, key: str) -> None:
        self._name, self._key = name, key

    def allows(self, token: str) -> bool:
        """Whether a token was signed with it."""
        said = {
            name: values[0] for name, values in parse_qs(token.partition(" ")[2].replace("+", "%2B")).items()
        }
        quoted = dict(part.partition("=")[::2] for part in token.partition(" ")[2].split("&")).get("sr", "")
        signed = hmac.new(self._key.encode(), f"{quoted}\n{said.get('se')}".encode(), hashlib.sha256).digest()
        return said.get("skn") == self._name and hmac.compare_digest(
            base64.b64encode(signed), said.get("sig", "").encode()
        )
