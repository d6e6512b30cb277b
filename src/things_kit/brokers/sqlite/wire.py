"""Messages as rows, and pages of columns as messages."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import accumulate, pairwise
from typing import Any, Final

import msgspec

from things_kit.brokers.sqlite.lending import Page
from things_kit.brokers.sqlite.store import Row
from things_kit.engine.driver import Delivery
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP

_to_json: Final = msgspec.json.encode
_numbers: Final = msgspec.json.Decoder(list[int]).decode
_lengths: Final = msgspec.json.Decoder(list[int | None]).decode
_texts: Final = msgspec.json.Decoder(list[str | None]).decode
_times: Final = msgspec.json.Decoder(list[datetime | None]).decode  # five times as fast as adding a timedelta
_headers: Final = msgspec.json.Decoder(list[dict[str, str]]).decode


def pack(messages: Iterable[Message], now: int) -> list[Row]:
    """A row for each message, all of which the engine has checked and completed."""
    rows: list[Row] = []
    time: datetime | None = None
    text: str | None = None
    for message in messages:
        packed = target = None
        if headers := message.headers:
            packed = _to_json(headers).decode()
            target = headers.get(REPLAY_GROUP)
        stamp = message.timestamp
        if stamp is not time:  # what is published together has one time, unless it says its own
            time = stamp
            text = None if stamp is None else stamp.isoformat()
        rows.append((message.key, message.value, packed, message.id, text, now, target))
    return rows


def by_topic(messages: Sequence[Message], now: int) -> dict[str, list[Row]]:
    """The rows of each topic, in the order of the messages."""
    batches: dict[str, list[Row]] = {}
    for message, row in zip(messages, pack(messages, now), strict=True):
        batches.setdefault(message.topic, []).append(row)
    return batches


def unpack(topic: str, page: Page) -> list[Delivery]:
    """The deliveries of a page, in its order."""
    offsets = _numbers(page.offsets)
    attempts = [1] * len(offsets) if page.attempts is None else _numbers(page.attempts)
    deliveries = [
        Delivery(Message(topic, value, key, headers, None, offset, timestamp, number, attempt), offset)
        for offset, key, value, headers, timestamp, number, attempt in zip(
            offsets,
            _slices(page.keys, _lengths(page.key_lengths)),
            _slices(page.values, _lengths(page.value_lengths)),
            _headers(page.headers),
            _times(page.times),
            _texts(page.ids),
            attempts,
            strict=True,
        )
    ]
    if page.suspects is not None:
        for delivery, suspect in zip(deliveries, _numbers(page.suspects), strict=True):
            delivery.suspect = suspect
    return deliveries


def _slices(joined: bytes | None, lengths: list[int | None]) -> list[Any]:
    """Take apart what SQLite has joined; None where there was none."""
    whole = joined or b""
    ends = accumulate((length or 0 for length in lengths), initial=0)
    parts = [whole[start:end] for start, end in pairwise(ends)]
    if None in lengths:
        return [None if length is None else part for length, part in zip(lengths, parts, strict=True)]
    return parts
