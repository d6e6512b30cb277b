r"""Messages as Kafka has them, and back.

Value, key and headers are native; what else there is, is in headers of the engine's (`envelope`), as librdkafka's texts end at a null.

The record's timestamp (CreateTime) is the message's too where the broker can have it without harm: it deletes what is
older than `retention.ms` by that timestamp, however lately it came, and refuses what is more than an hour in the future
(`message.timestamp.after.max.ms`). Instead of times outside of the last day it has the time of publishing.

Records of foreign producers: a null value arrives as b"" with the header `kafka-tombstone`; a null header is an empty one;
without an id it is TOPIC-PARTITION-OFFSET.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import repeat
from operator import attrgetter
from typing import Any, Final

from confluent_kafka import KafkaError
from confluent_kafka import Message as Record

from things_kit.brokers.kafka.errors import PARTITION_END
from things_kit.engine.driver import Delivery
from things_kit.engine.envelope import EPOCH, Envelope
from things_kit.engine.offsets import Offsets
from things_kit.engine.state import READY
from things_kit.messaging.message import Message

TOMBSTONE: Final = "kafka-tombstone"
"""The header of a message whose record has no value, which deletes its key from a compacted topic."""

MILLISECOND: Final = timedelta(milliseconds=1)
OLD: Final = timedelta(days=1)
EARLY: Final = timedelta(minutes=10)


def _fit(headers: Mapping[str, str], identity: str | None) -> bool:
    # The client takes text as it is, but only up to a null; looking for one is cheaper than encoding
    for name, text in headers.items():
        if "\0" in name or "\0" in text:
            return False
    return identity is None or "\0" not in identity


ENVELOPE: Final = Envelope(
    lambda name, text: "\0" not in name and "\0" not in text, fits=_fit, binary=True, events=("ce_",)
)
_usual: Final = ENVELOPE.usual
_offset: Final = attrgetter("offset")


class Clock:
    """Translates the times of one batch: most messages share one, which `publish` gave them."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)
        self._last: datetime | None = None
        self._native = 0

    def native(self, moment: datetime) -> int:
        """A record's timestamp in milliseconds; 0 for the time of publishing."""
        if moment is not self._last:
            self._last = moment
            harmless = -OLD < moment - self._now < EARLY
            self._native = (moment - EPOCH) // MILLISECOND if harmless else 0
        return self._native


def raw_headers(message: Message) -> dict[str, str | bytes | None]:
    """All headers of a message's record."""
    return ENVELOPE.fields(message, key=False)  # type: ignore[return-value] # text is one of what the client takes


class Placed(Delivery, eq=False, gc=False):
    """A delivery whose token is the `Offsets` of its partition: with its offset here it needs no record of both."""

    offset: int = 0


def unpack(records: list[Record], partitions: Mapping[int, Offsets]) -> tuple[list[Placed], list[KafkaError]]:
    """A batch of records as deliveries, in order, without those that were finished before; and errors among them.

    Runs once for each message, so it does nothing twice and calls little. It empties the list: a record that was read keeps
    its headers, five things or more to the garbage collector, which would look at those of a whole batch again and again.
    """
    deliveries: list[Placed] = []
    errors: list[KafkaError] = []
    topic, partition, offsets = "", -1, None
    run: list[Message] = []  # of one partition
    records.reverse()
    following = records.pop
    while records:
        record = following()
        of, error = record.partition(), record.error()
        if of != partition or error is not None:
            deliveries += _received(run, offsets)
            run = []
            topic, partition = record.topic(), of  # type: ignore[assignment] # only messages made by hand have none
            offsets = partitions.get(partition)
        if error is None:
            run.append(_message(record, topic, partition, record.offset()))  # type: ignore[arg-type] # as above
        elif error.code() != PARTITION_END:
            errors.append(error)
        elif offsets is not None:
            offsets.skip(record.offset())  # type: ignore[arg-type] # as above
    deliveries += _received(run, offsets)
    return deliveries, errors


def _received(run: Sequence[Message], offsets: Offsets | None) -> Iterable[Placed]:
    """Those of a run that were not finished before, as deliveries; none of a partition that is others' by now."""
    if offsets is None or not run:
        return ()
    numbers: list[int] = [*map(_offset, run)]
    if offsets.receive_all(numbers):
        return map(
            Placed, run, repeat(offsets), repeat(0), repeat(None), repeat(READY), repeat(None), numbers
        )
    return [
        Placed(message, offsets, offset=number)
        for message, number in zip(run, numbers, strict=True)
        if offsets.receive(number)
    ]


def unpack_one(record: Record) -> Message:
    """One record as a message."""
    topic, partition, offset = record.topic(), record.partition(), record.offset()
    return _message(record, topic, partition, offset)  # type: ignore[arg-type] # only messages made by hand have none


def _message(record: Record, topic: str, partition: int, offset: int) -> Message:
    try:
        pairs: Any = record.headers() or ()
    except SystemError:  # how the client fails at a name that is no UTF-8
        pairs = ()
    value: Any = record.value()
    key: Any = record.key()
    message = _usual(topic, value, pairs, key, partition, offset)
    if message is None:
        message, _ = ENVELOPE.message(topic, value, pairs, key, partition, offset)
        return _completed(message, record)
    return message


def _completed(message: Message, record: Record) -> Message:
    """With what the record tells where no header does."""
    here = f"{message.topic}-{message.partition}-{message.offset}"
    gone = record.value() is None
    return message.replace(
        value=b"" if gone else message.value,
        headers={**message.headers, TOMBSTONE: "true"} if gone else message.headers,
        timestamp=message.timestamp or _time(record.timestamp()[1]),
        id=here if message.id is None else message.id,
    )


def _time(stamp: int) -> datetime:
    try:
        return EPOCH + MILLISECOND * stamp
    except OverflowError:  # a clock that went mad
        return EPOCH
