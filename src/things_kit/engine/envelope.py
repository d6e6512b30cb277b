r"""What every driver writes beside a message's value and headers, and how it is read back.

Text fields that a broker has beside the value (headers, attributes, properties) carry a message's headers under their
own names, and what the broker has no place for under ours, which handlers never see:

    tk-id       the message's id
    tk-time     its time, in ISO 8601 with microseconds
    tk-key      its key, as text
    tk-attempt  of a copy: the attempt with which it comes first, if that is not 1
    tk-due      of a copy: when it is due, in seconds since 1970
    tk-group    of a copy: the one group that is to have it
    tk-suspect  the attempt at which a mark was stored beside it (`Delivery.suspect`)
    tk-packed   JSON of what cannot be a field of this broker: `id`, `key64` (the key in Base64), `headers`

The JSON is printable ASCII and has no "=?", which clients take for the beginning of a word in another encoding. What is written
is read exactly. `tk-dead-letter`, a bare dead letter's mark, stays among the headers: replay and `dlq` read it, and the
engine keeps it from handlers. What others wrote becomes an ordinary message as well: bytes that are no UTF-8 are shown as \xNN, values
of other types as JSON, and fields with our prefix that say nothing we understand are left out.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import msgspec

from things_kit.messaging.message import RESERVED_PREFIX, Message
from things_kit.messaging.names import DEAD_LETTER_MARK

ID: Final = "tk-id"
TIME: Final = "tk-time"
KEY: Final = "tk-key"
ATTEMPT: Final = "tk-attempt"
DUE: Final = "tk-due"
GROUP: Final = "tk-group"
SUSPECT: Final = "tk-suspect"
PACKED: Final = "tk-packed"

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MOST_KEPT: Final = 1000
"""Names and times that are kept, as most messages have those of others."""

NOT_OURS: Final = (AttributeError, TypeError, ValueError, OverflowError, msgspec.MsgspecError)
"""How fields of our names fail that somebody else wrote."""

Fields: TypeAlias = dict[str, str]
"""Names and values beside a message's value, as they are written."""

Pair: TypeAlias = tuple[Any, Any]
"""A name and a value as they are read: text, bytes, or what else a client makes of them."""


class Packed(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What is told of a message beside its topic and value, where it is not in fields of its own.

    Attributes:
        id: The message's id.
        key: Its key, where that is text.
        key64: Its key, where it is not, or must not be a field.
        headers: Those that cannot be fields.
        time: Its timestamp.
        attempt: The attempt with which this copy comes first.
        due: When this copy is due, in seconds since 1970.
        group: The one group that is to have this copy.
        suspect: `Delivery.suspect`.
    """

    id: str | None = None
    key: str | None = None
    key64: bytes | None = None
    headers: dict[str, str] = {}
    time: datetime | None = None
    attempt: int = 1
    due: float | None = None
    group: str | None = None
    suspect: int = 0

    def text(self) -> str:
        """JSON in printable ASCII without "=?", for anything that carries printable text."""
        said = _encode(self).decode()
        if not said.isascii():
            said = json.dumps(msgspec.to_builtins(self), separators=(",", ":"))
        return said.replace("=?", "=\\u003f").replace("\x7f", "\\u007f")

    def onto(self, message: Message) -> Message:
        """The message with what is told here; its attempt counts the deliveries of this copy."""
        key = self.key64 if self.key is None else self.key.encode()
        when = self.time
        if when is not None and when.tzinfo is not UTC:
            when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
        return Message(
            message.topic,
            message.value,
            message.key if key is None else key,
            {**message.headers, **self.headers},
            message.partition,
            message.offset,
            message.timestamp if when is None else when,
            message.id if self.id is None else self.id,
            max(1, message.attempt + self.attempt - 1),
        )


EVENTS: Final = "ce-"
"""How the names of a CloudEvent's attributes begin for handlers, and in HTTP and whatever follows it."""

EVENT: Final = f"{EVENTS}specversion"
"""The attribute that every CloudEvent has."""

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Packed).decode
_NOTHING: Final = Packed()


class Envelope:
    """What one broker's fields carry as it is, and the notes of a producer or receiver that packs or unpacks by it.

    Args:
        carries: Whether a field of that name and text arrives unchanged and means nothing to the broker.
        fits: The same of all headers at once, and of an id, None where it is no field: asked for every message
            that is published, so as cheap as can be. Upon a no they are looked at one by one.
        most: How many headers may be fields.
        binary: Whether values arrive as bytes, else as text. What is neither must be made so by `text_of` before.
        events: How the names of a CloudEvent's attributes begin in this protocol's binding, first as we write them;
            handlers see `ce-`. Nothing is renamed where that would take a name that is there.
    """

    def __init__(
        self,
        carries: Callable[[str, str], bool],
        *,
        fits: Callable[[Mapping[str, str], str | None], bool] | None = None,
        most: int | None = None,
        binary: bool = False,
        events: Sequence[str] = (),
    ) -> None:
        self._carries = carries
        self._fits = fits or self._all_carried
        self._most = most
        self._binary = binary
        self._events = {f"{prefix}specversion": prefix for prefix in events}
        self._event = events[0] if events else None
        self._stamp: tuple[datetime | None, str] = (EPOCH, EPOCH.isoformat(timespec="microseconds"))
        self._known: set[str] = set()
        self._times: dict[Any, datetime] = {}

    # --- writing

    def fields(self, message: Message, *, identity: bool = True, key: bool = True) -> Fields:
        """The fields of a message that the engine has completed, in text.

        Args:
            message: The message.
            identity: Whether its id is among them; else the driver has a place for it.
            key: The same of its key.
        """
        moment, stamp = self._stamp
        if message.timestamp is not moment:  # most messages of a batch share one, which `publish` gave them
            stamp = self._stamped(message.timestamp)
        headers = message.headers
        if self._event is not None and EVENT in headers:
            headers = renamed(headers, EVENTS, self._event)
        own = message.id or ""
        if self._fits(headers, own if identity else None):
            fields = {**headers, ID: own, TIME: stamp} if identity else {**headers, TIME: stamp}
            if not key or message.key is None:
                return fields
            rest = Packed()
        else:
            fields, rest = self._divided(headers)
            fields[TIME] = stamp
            if identity and self._carries(ID, own):
                fields[ID] = own
            elif identity:
                rest.id = own
        if key and message.key is not None:
            told = as_text(message.key)
            if told is not None and self._carries(KEY, told):
                fields[KEY] = told
            else:
                rest.key64 = message.key
        if rest != _NOTHING:
            fields[PACKED] = rest.text()
        return fields

    def stamp(self, moment: datetime | None) -> str:
        """A time as `tk-time` has it."""
        return self._stamp[1] if moment is self._stamp[0] else self._stamped(moment)

    def _stamped(self, moment: datetime | None) -> str:
        text = (moment or EPOCH).isoformat(timespec="microseconds")
        self._stamp = moment, text
        return text

    def _all_carried(self, headers: Mapping[str, str], identity: str | None) -> bool:
        carries = self._carries
        if self._most is not None and len(headers) > self._most:
            return False
        return (identity is None or carries(ID, identity)) and all(
            carries(name, text) for name, text in headers.items()
        )

    def _divided(self, headers: Mapping[str, str]) -> tuple[Fields, Packed]:
        """Headers that may be fields, and the others."""
        fields, rest = Fields(), Packed()
        for name, text in headers.items():
            room = self._most is None or len(fields) < self._most
            (fields if room and self._carries(name, text) else rest.headers)[name] = text
        return fields, rest

    # --- reading

    def message(
        self,
        topic: str,
        value: bytes,
        pairs: Collection[Pair],
        key: bytes | None = None,
        partition: int | None = None,
        offset: int | None = None,
        identity: str | None = None,
        moment: str | bytes | None = None,
        attempt: int = 1,
    ) -> tuple[Message, Packed | None]:
        """A message as it came, and what else is told of this copy. Runs once for each, so it does nothing twice.

        Args:
            topic: Where it came from.
            value: Its value.
            pairs: Its fields: names, and values of the kind that `binary` says. The last of a repeated one counts.
            key: Its key where the broker has a place for it; a field of ours goes before it, here and below.
            partition: Where it came from.
            offset: Its position there.
            identity: Its id.
            moment: Its time, as `stamp` wrote it, in text or bytes.
            attempt: Which delivery of this very copy it is.

        Returns:
            The message, without an id or time where nothing tells it: the broker has something like it.
        """
        headers: dict[str, Any] = {}
        own, own_key, stamp, rest = identity, key, moment, None
        try:
            if self._binary:
                for name, raw in pairs:
                    if name == ID:
                        own = raw.decode()
                    elif name == TIME:
                        stamp = raw
                    else:
                        headers[name] = raw.decode()
            else:
                headers = dict(pairs)
                own, stamp = headers.pop(ID, own), headers.pop(TIME, stamp)
                if (told := headers.pop(KEY, None)) is not None:
                    own_key = told.encode()
            if headers and not self._known.issuperset(headers):
                rest = self._sort_out(headers)
            when = None if stamp is None else self._times.get(stamp) or self._time(stamp)
            message = Message(topic, value, own_key, headers, partition, offset, when, own, attempt)
            if rest is None:
                return message, None
            packed = _rest(rest)
        except NOT_OURS:
            bare = Message(topic, value, key, {}, partition, offset, None, None, attempt)
            return _foreign(bare, pairs, identity, moment)
        return packed.onto(message), packed

    def usual(
        self,
        topic: str,
        value: bytes | None,
        pairs: Collection[tuple[str, bytes | None]],
        key: bytes | None,
        partition: int,
        offset: int,
    ) -> Message | None:
        """What `message` makes of one that is as our producers send nearly all of them; None of any other.

        It has a value, an id, a time, and fields in bytes whose names were seen before.
        """
        headers: dict[str, str] = {}
        known, own, stamp = self._known, None, None
        try:
            for name, raw in pairs:
                if name == ID:
                    own = raw.decode()  # type: ignore[union-attr] # null is an AttributeError
                elif name == TIME:
                    stamp = raw
                elif name in known:
                    headers[name] = raw.decode()  # type: ignore[union-attr]
                else:
                    return None
            if own is None or stamp is None or value is None:
                return None
            when = self._times.get(stamp) or self._time(stamp)
        except NOT_OURS:
            return None
        return Message(topic, value, key, headers, partition, offset, when, own)

    def _sort_out(self, headers: dict[str, Any]) -> dict[str, str] | None:
        """Take fields of ours out of the headers. Programs use few names, so those that are none are kept."""
        rest = {name: headers.pop(name) for name in [*headers] if is_own(name)}
        if len(self._known) < MOST_KEPT:
            self._known.update(headers.keys() - self._events)  # so that an event is always looked at
        for mark, prefix in self._events.items():
            if mark in headers:
                event = dict(renamed(headers, prefix, EVENTS))
                headers.clear()
                headers |= event
        return rest or None

    def _time(self, stamp: Any) -> datetime:
        if len(self._times) >= MOST_KEPT:
            self._times.clear()
        self._times[stamp] = when = _moment(stamp)
        return when


def renamed(headers: Mapping[str, str], old: str, new: str) -> Mapping[str, str]:
    """Headers whose names begin with `old` under names that begin with `new`; as they are if any does already."""
    if any(name.startswith(new) for name in headers):
        return headers
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: text for name, text in headers.items()
    }


def _foreign(
    bare: Message, pairs: Collection[Pair], identity: Any, moment: Any
) -> tuple[Message, Packed | None]:
    """Of another program, which may have some of our fields, or mean something else by them."""
    fields = {text_of(name): raw for name, raw in pairs}
    for name, raw in ((ID, identity), (TIME, moment)):
        if raw is not None:
            fields.setdefault(name, raw)
    headers = {name: text_of(raw) for name, raw in fields.items() if not is_own(name)}
    packed = _rest(fields, lenient=True)
    return packed.onto(bare.replace(headers=headers)), packed


def is_own(name: str) -> bool:
    """Whether a field is a driver's own. The mark of a dead letter is not: it is among the message's headers."""
    return name.startswith(RESERVED_PREFIX) and name != DEAD_LETTER_MARK


def _rest(fields: Mapping[str, Any], *, lenient: bool = False) -> Packed:
    """What fields of ours tell. What says nothing we understand is passed over, or raises one of NOT_OURS."""
    packed = Packed()
    for name, (attribute, read) in OWN.items():
        if name in fields:
            try:
                told = read(fields[name])
            except NOT_OURS:
                if not lenient:
                    raise
                continue
            if attribute:
                setattr(packed, attribute, told)
            else:
                packed = told
    return packed


def _text(value: Any) -> str:
    return value if isinstance(value, str) else value.decode()


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _moment(value: Any) -> datetime:
    when = datetime.fromisoformat(_text(value))
    if when.tzinfo is None:
        raise ValueError("a time without a zone")
    return when if when.tzinfo is UTC else when.astimezone(UTC)


def _count(value: Any) -> int:
    count = int(value)
    if count < 0:
        raise ValueError("a negative count")
    return count


OWN: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    PACKED: ("", _decode),
    ID: ("id", _text),
    KEY: ("key64", _bytes),
    TIME: ("time", _moment),
    ATTEMPT: ("attempt", _count),
    DUE: ("due", float),
    GROUP: ("group", _text),
    SUSPECT: ("suspect", _count),
}
"""Fields of ours, what of `Packed` they tell, and how they are read; the first tells all."""


def note(
    fields: Fields, *, attempt: int = 1, due: float | None = None, group: str | None = None, suspect: int = 0
) -> None:
    """Add to the fields of a message what is told of this copy alone."""
    if attempt != 1:
        fields[ATTEMPT] = str(attempt)
    if due is not None:
        fields[DUE] = f"{due:.3f}"
    if group is not None:
        fields[GROUP] = group
    if suspect:
        fields[SUSPECT] = str(suspect)


# --- what others write


def text_of(value: Any) -> str:
    """A value of any type, such as AMQP has them, as the text of a header."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray):
        return value.decode(errors="backslashreplace")
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(plain(value), ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat()
    return "" if value is None else str(value)


def plain(value: Any) -> Any:
    """What JSON can say of a value of any type."""
    if isinstance(value, Mapping):
        return {text_of(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return int(value) if isinstance(value, int) else text_of(value)


def as_text(raw: bytes) -> str | None:
    """Bytes as the text that they are; None where they are none."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def size_of(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
