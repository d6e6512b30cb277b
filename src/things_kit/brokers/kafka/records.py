r"""Messages as Kafka has them, and back.

Value, key and headers are native. Of our own there are up to four headers, which handlers never see:

    tk-id       the message's id
    tk-time     its time, in ISO 8601 with microseconds: the record's own has milliseconds, and may be the broker's
    tk-headers  JSON of all headers, where one has a name that librdkafka, whose names end at a null, cannot carry

The record's timestamp (CreateTime) is the message's too where the broker can have it without harm: it deletes what is
older than `retention.ms` by that timestamp, however lately it came, and refuses what is more than an hour in the future
(`message.timestamp.after.max.ms`). Instead of times outside of the last day it has the time of publishing.

Records of foreign producers: a null value arrives as b"" with the header `kafka-tombstone`; of a repeated header the
last one counts; bytes of a header that are no UTF-8 are shown as \xNN; a null header is an empty one; without an id
it is TOPIC-PARTITION-OFFSET. Headers with our names that say nothing we understand are left out.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import msgspec
from confluent_kafka import KafkaError
from confluent_kafka import Message as Record

from things_kit.brokers.kafka.errors import PARTITION_END
from things_kit.engine.driver import Delivery
from things_kit.engine.offsets import Offsets
from things_kit.messaging.message import RESERVED_PREFIX, Message

TOMBSTONE: Final = "kafka-tombstone"
"""The header of a message whose record has no value, which deletes its key from a compacted topic."""

ID: Final = "tk-id"
TIME: Final = "tk-time"
HEADERS: Final = "tk-headers"

NOT_OURS: Final = (AttributeError, SystemError, ValueError, msgspec.MsgspecError)
"""How headers of our names fail that somebody else wrote; SystemError is the client's for names that are no UTF-8."""

UNUSUAL: Final = (TypeError, *NOT_OURS)
"""The same, or a header that has no value."""

Stamps: TypeAlias = dict[Any, datetime]
"""Times by what they were read from: most records of a batch share one."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)
OLD: Final = timedelta(days=1)
EARLY: Final = timedelta(minutes=10)

RawHeaders = dict[str, str | bytes | None]
"""As the client takes them."""


class Clock:
    """Translates the times of one batch: most messages share one, which `publish` gave them."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)
        self._last: datetime | None = None
        self._stamp = (0, "")

    def stamp(self, moment: datetime) -> tuple[int, str]:
        """A record's timestamp in milliseconds, 0 for the time of publishing, and the header that says it exactly."""
        if moment is not self._last:
            self._last = moment
            harmless = -OLD < moment - self._now < EARLY
            native = (moment - EPOCH) // MILLISECOND if harmless else 0
            self._stamp = native, moment.isoformat(timespec="microseconds")
        return self._stamp


def raw_headers(message: Message, exact: str) -> RawHeaders:
    """All headers of a message's record."""
    headers: Mapping[str, str] = message.headers
    identity: str = message.id  # type: ignore[assignment] # the engine gives it
    # The client takes text as it is, but only up to a null; looking for one is cheaper than encoding
    for name, text in headers.items():
        if "\0" in name or "\0" in text:
            return _encoded(headers, identity, exact)
    return (
        {**headers, ID: identity, TIME: exact} if "\0" not in identity else _encoded(headers, identity, exact)
    )


def _encoded(headers: Mapping[str, str], identity: str, exact: str) -> RawHeaders:
    """Where there is a null in a name or a text."""
    own: RawHeaders = {ID: identity.encode(), TIME: exact}
    if any("\0" in name for name in headers):
        return {HEADERS: msgspec.json.encode(headers), **own}
    return {**{name: text.encode() for name, text in headers.items()}, **own}


def unpack(
    records: Sequence[Record], partitions: Mapping[int, Offsets]
) -> tuple[list[Delivery], list[KafkaError]]:
    """A batch of records as deliveries, in order, without those that were finished before; and errors among them.

    A delivery's token is the `Offsets` of its partition and its offset. Runs once for each message, so it does nothing twice and calls little.
    """
    deliveries: list[Delivery] = []
    errors: list[KafkaError] = []
    topic, partition, offsets = "", -1, None
    stamps: Stamps = {}
    for record in records:
        of = record.partition()
        if of != partition or offsets is None:
            topic, partition = record.topic(), of  # type: ignore[assignment] # only messages made by hand have none
            offsets = partitions.get(partition)
        offset: int = record.offset()  # type: ignore[assignment]
        error = record.error()
        if error is not None:
            if error.code() != PARTITION_END:
                errors.append(error)
            elif offsets is not None:
                offsets.skip(offset)
            continue
        if offsets is None or not offsets.receive(offset):
            continue
        try:
            message = _message(record, topic, partition, offset, stamps, bytes.decode)
        except UNUSUAL:
            message = _unusual(record, topic, partition, offset)
        deliveries.append(Delivery(message, (offsets, offset)))
    return deliveries, errors


def unpack_one(record: Record) -> Message:
    """One record as a message."""
    topic, partition, offset = record.topic(), record.partition(), record.offset()
    return _unusual(record, topic, partition, offset)  # type: ignore[arg-type] # only messages made by hand have none


def _message(
    record: Record, topic: str, partition: int, offset: int, stamps: Stamps, text: Callable[[Any], str]
) -> Message:
    headers: dict[str, str] = {}
    identity, moment = None, None
    for name, raw in record.headers() or ():  # type: ignore[str-unpack] # it is a list
        if name == ID:
            identity = raw.decode()  # type: ignore[union-attr] # None: not ours, see _strange
        elif name == TIME:
            moment = raw
        else:
            headers[name] = text(raw)
    if HEADERS in headers:
        headers = msgspec.json.decode(headers[HEADERS], type=dict[str, str])
    value = record.value()
    if value is None:
        headers[TOMBSTONE] = "true"
        value = b""
    stamp: Any = moment or record.timestamp()[1]
    when = stamps.get(stamp)
    if when is None:
        when = stamps[stamp] = _time(stamp)
    if identity is None:
        identity = f"{topic}-{partition}-{offset}"
    return Message(topic, value, record.key(), headers, partition, offset, when, identity)


def _unusual(record: Record, topic: str, partition: int, offset: int) -> Message:
    """A record that may have headers without a value, or with one that is no UTF-8."""
    try:
        return _message(record, topic, partition, offset, {}, _text)
    except NOT_OURS:
        return _strange(record, topic, partition, offset)


def _strange(record: Record, topic: str, partition: int, offset: int) -> Message:
    """A record with headers of our names that are not ours, or with names of headers that are no UTF-8."""
    try:
        pairs: list[tuple[str, bytes | None]] = record.headers() or []  # type: ignore[assignment]
        headers = {name: _text(raw) for name, raw in pairs if not name.startswith(RESERVED_PREFIX)}
    except SystemError:  # how the client fails at such a name
        headers = {}
    value = record.value()
    if value is None:
        headers[TOMBSTONE] = "true"
    when = _time(record.timestamp()[1])
    return Message(
        topic, value or b"", record.key(), headers, partition, offset, when, f"{topic}-{partition}-{offset}"
    )


def _text(raw: str | bytes | None) -> str:
    return raw.decode(errors="backslashreplace") if isinstance(raw, bytes) else raw or ""


def _time(stamp: bytes | int) -> datetime:
    """Of a header `tk-time`, or a record's own timestamp. Raises ValueError if the header says no time."""
    if isinstance(stamp, bytes):
        when = datetime.fromisoformat(stamp.decode())
        return when.astimezone(UTC) if when.tzinfo is not UTC else when
    try:
        return EPOCH + MILLISECOND * stamp
    except OverflowError:  # a clock that went mad
        return EPOCH
