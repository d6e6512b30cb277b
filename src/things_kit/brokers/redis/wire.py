r"""Messages as entries of a stream, and back.

The value is the field `value`, the key the field `key` (options of the URL give them other names), and each header a field of its
own. Of our own there are up to three fields, which handlers never see:

    tk-id       the message's id
    tk-time     its time, in ISO 8601 with microseconds: the entry's ID has the time at which it was published
    tk-headers  JSON of all headers, where one has the name of another field of ours

Entries of foreign producers: one without the field of the value has a JSON object of all its fields as value, and the same
fields as headers; of a repeated field the last one counts; bytes of a header that are no UTF-8 are shown as \xNN; without an id
it is TOPIC-ENTRY, and without a time that of the entry's ID. Fields with our prefix that say nothing we understand are left out.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import msgspec

from things_kit.engine.driver import Delivery
from things_kit.messaging.message import RESERVED_PREFIX, Message

ID: Final = b"tk-id"
TIME: Final = b"tk-time"
HEADERS: Final = b"tk-headers"
OURS: Final = RESERVED_PREFIX.encode()

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

NOT_OURS: Final = (ValueError, OverflowError, msgspec.MsgspecError)
"""How an entry fails to be one of ours."""

Entry: TypeAlias = tuple[bytes, Sequence[bytes] | None]
"""An entry's ID, and its fields and values in turn; None where it was deleted."""

_to_json: Final = msgspec.json.encode
_headers_of: Final = msgspec.json.Decoder(dict[str, str]).decode


class Layout:
    """Where value and key are in an entry."""

    def __init__(self, value_field: str, key_field: str) -> None:
        self.value_field = value_field.encode()
        self.key_field = key_field.encode()
        self._taken = {value_field, key_field}
        self._last: datetime | None = None
        self._stamp = b""

    def pack(self, message: Message) -> list[Any]:
        """Fields and values in turn of a message, which the engine has checked and completed."""
        moment, headers = message.timestamp, message.headers
        if moment is not self._last:  # most messages of a batch share one, which `publish` gave them
            self._last, self._stamp = moment, moment.isoformat(timespec="microseconds").encode()  # type: ignore[union-attr]
        fields: list[Any] = [self.value_field, message.value, ID, message.id, TIME, self._stamp]
        if message.key is not None:
            fields += (self.key_field, message.key)
        if headers:
            if self._taken.isdisjoint(headers):
                for pair in headers.items():
                    fields += pair
            else:
                fields += (HEADERS, _to_json(headers))
        return fields

    def unpack(self, topic: str, entries: Iterable[Entry]) -> list[Delivery]:
        """Entries at their first attempt as deliveries, whose tokens are the entries' IDs. Leaves out what was deleted.

        Runs once for each message, so it does nothing twice and calls little.
        """
        times: dict[bytes, datetime] = {}
        deliveries: list[Delivery] = []
        for entry, fields in entries:
            if fields is None:
                continue
            try:
                message = self._ours(topic, fields, times)
            except NOT_OURS:
                message = self._strange(topic, entry, fields)
            deliveries.append(Delivery(message, entry))
        return deliveries

    def _ours(self, topic: str, fields: Sequence[bytes], times: dict[bytes, datetime]) -> Message:
        """Raises one of NOT_OURS for an entry that was not written here."""
        value = key = identity = stamp = None
        value_field, key_field = self.value_field, self.key_field
        headers: dict[str, str] = {}
        each = iter(fields)
        for name, raw in zip(each, each, strict=True):
            if name == value_field:
                value = raw
            elif name == ID:
                identity = raw.decode()
            elif name == TIME:
                stamp = raw
            elif name == key_field:
                key = raw
            elif name == HEADERS:
                headers.update(_headers_of(raw))
            elif name[:3] != OURS:
                headers[name.decode()] = raw.decode()
        if value is None or identity is None or stamp is None:
            raise ValueError("it is of another program")
        when = times.get(stamp)
        if when is None:
            when = times[stamp] = _time(stamp)
        return Message(topic, value, key, headers, None, None, when, identity)

    def _strange(self, topic: str, entry: bytes, fields: Sequence[bytes]) -> Message:
        """An entry that another program has written."""
        each = iter(fields)
        pairs = dict(zip(each, each, strict=True))
        headers = {
            _text(name): _text(raw)
            for name, raw in pairs.items()
            if name not in {self.value_field, self.key_field} and not name.startswith(OURS)
        }
        headers |= _understood(_headers_of, pairs.get(HEADERS), {})
        key, value = pairs.get(self.key_field), pairs.get(self.value_field)
        if value is None:
            value = _to_json({_text(name): _text(raw) for name, raw in pairs.items()})
        identity = _understood(bytes.decode, pairs.get(ID), f"{topic}-{entry.decode()}")
        when = _understood(_time, pairs.get(TIME), None) or _published(entry)
        return Message(topic, value, key, headers, None, None, when, identity)


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


def _understood(read: Any, raw: bytes | None, otherwise: Any) -> Any:
    if raw is None:
        return otherwise
    try:
        return read(raw)
    except NOT_OURS:
        return otherwise


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def _time(stamp: bytes) -> datetime:
    """Of the field `tk-time`. Raises ValueError if it says no time."""
    when = datetime.fromisoformat(stamp.decode())
    return when.astimezone(UTC) if when.tzinfo is not UTC else when


def _published(entry: bytes) -> datetime:
    """The time in an entry's ID."""
    try:
        return EPOCH + timedelta(milliseconds=position(entry)[0])
    except OverflowError:  # an ID that somebody made up
        return EPOCH
