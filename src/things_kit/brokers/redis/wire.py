r"""Messages as entries of a stream, and back.

The value is the field `value`, the key the field `key` (options of the URL give them other names), and the headers are the fields of
the engine's `envelope`: each in a field of its own, but for those that have the name of one of these two, which are packed.

Entries of foreign producers: one without the field of the value has a JSON object of all its fields as value, and the same
fields as headers; of a repeated field the last one counts; bytes of a header that are no UTF-8 are shown as \xNN; without an id
it is TOPIC-ENTRY, and without a time that of the entry's ID. Fields with our prefix that say nothing we understand are left out.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import msgspec

from things_kit.engine.driver import Delivery
from things_kit.engine.envelope import EPOCH, Envelope, text_of
from things_kit.messaging.message import Message

Entry: TypeAlias = tuple[bytes, Sequence[bytes] | None]
"""An entry's ID, and its fields and values in turn; None where it was deleted."""

MOST_KEPT: Final = 1000
"""Names of fields that are kept decoded."""


class Layout:
    """Where value and key are in an entry."""

    def __init__(self, value_field: str, key_field: str) -> None:
        self.value_field = value_field.encode()
        self.key_field = key_field.encode()
        taken = {value_field, key_field}
        self._envelope = Envelope(
            lambda name, _: name not in taken,
            fits=lambda headers, _: taken.isdisjoint(headers),
            binary=True,
        )
        self._names: dict[bytes, str] = {}

    def pack(self, message: Message) -> list[Any]:
        """Fields and values in turn of a message, which the engine has checked and completed."""
        packed: list[Any] = [self.value_field, message.value]
        if message.key is not None:
            packed += (self.key_field, message.key)
        for pair in self._envelope.fields(message, key=False).items():
            packed += pair
        return packed

    def unpack(self, topic: str, entries: Iterable[Entry]) -> list[Delivery]:
        """Entries at their first attempt as deliveries, whose tokens are the entries' IDs. Leaves out what was deleted."""
        return [
            Delivery(self._message(topic, entry, fields), entry)
            for entry, fields in entries
            if fields is not None
        ]

    def _message(self, topic: str, entry: bytes, fields: Sequence[bytes]) -> Message:
        names, value_field, key_field = self._names, self.value_field, self.key_field
        value = key = None
        pairs: list[tuple[str, bytes]] = []
        each = iter(fields)
        for name, raw in zip(each, each, strict=True):
            if name == value_field:
                value = raw
            elif name == key_field:
                key = raw
            else:
                pairs.append((names.get(name) or self._learn(name), raw))
        if value is None:
            value = _as_json(fields)
        message, _ = self._envelope.message(topic, value, pairs, key)
        if message.timestamp is None or message.id is None:
            return message.replace(
                timestamp=message.timestamp or _published(entry),
                id=f"{topic}-{entry.decode()}" if message.id is None else message.id,
            )
        return message

    def _learn(self, name: bytes) -> str:
        text = text_of(name)
        if len(self._names) < MOST_KEPT:
            self._names[name] = text
        return text


def _as_json(fields: Sequence[bytes]) -> bytes:
    each = iter(fields)
    return msgspec.json.encode({text_of(name): text_of(raw) for name, raw in zip(each, each, strict=True)})


def position(entry: bytes) -> tuple[int, int]:
    """An entry's ID as what it is ordered by."""
    milliseconds, _, sequence = entry.partition(b"-")
    return int(milliseconds), int(sequence)


def before(entry: bytes) -> bytes:
    """The ID right before this one."""
    milliseconds, sequence = position(entry)
    if sequence:
        return b"%d-%d" % (milliseconds, sequence - 1)
    return b"%d-%d" % (milliseconds - 1, 2**64 - 1) if milliseconds else b"0-0"


def _published(entry: bytes) -> datetime:
    """The time in an entry's ID."""
    try:
        return EPOCH + timedelta(milliseconds=position(entry)[0])
    except OverflowError:  # an ID that somebody made up
        return EPOCH
