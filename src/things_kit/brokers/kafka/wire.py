r"""Messages as Kafka has them, and back.

Value, key and headers are native; what else there is, is in headers of the engine's (`envelope`), as librdkafka's texts end at a null.

The record's timestamp (CreateTime) is the message's too where the broker can have it without harm: it deletes what is
older than `retention.ms` by that timestamp, however lately it came, and refuses what is more than an hour in the future
(`message.timestamp.after.max.ms`). Instead of times outside of the last day it has the time of publishing.

Records of foreign producers: a null value arrives as b"" with the header `kafka-tombstone`; a null header is an empty one;
without an id it is TOPIC-PARTITION-OFFSET.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from confluent_kafka import KafkaError
from confluent_kafka import Message as Record

from things_kit.brokers.kafka.errors import PARTITION_END
from things_kit.engine.driver import Delivery
from things_kit.engine.envelope import EPOCH, Envelope
from things_kit.engine.offsets import Offsets
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


def unpack(
    records: Sequence[Record], partitions: Mapping[int, Offsets]
) -> tuple[list[Delivery], list[KafkaError]]:
    """A batch of records as deliveries, in order, without those that were finished before; and errors among them.

    A delivery's token is the `Offsets` of its partition and its offset. Runs once for each message, so it does nothing twice and calls little.
    """
    deliveries: list[Delivery] = []
    errors: list[KafkaError] = []
    topic, partition, offsets = "", -1, None
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
        deliveries.append(Delivery(_message(record, topic, partition, offset), (offsets, offset)))
    return deliveries, errors


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
