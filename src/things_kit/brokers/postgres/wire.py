"""Messages as rows, and pages of columns as messages.

`INSERT` and `SCHEDULE` are all that a foreign transaction needs, an outbox above all: see `schema`. Their parameters are
the fields of a `Row`, with `due` and `schedule_id` behind them for `SCHEDULE`. The order in which one transaction
inserts is the order in which its messages come; the topic need not exist yet.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from things_kit.engine.driver import Delivery
from things_kit.engine.envelope import text_of
from things_kit.messaging.errors import PublishError
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP

COLUMNS: Final = ("topic", "key", "value", "headers", "id", "time", "target")
"""The columns of `message` and `scheduled` that a publisher fills in; `scheduled` has `due` and `schedule_id` as well."""

TYPES: Final = ("text", "bytea", "bytea", "text", "text", "timestamptz", "text")

INSERT: Final = "INSERT INTO {s}.message (topic, key, value, headers, id, time, target)"
SCHEDULE: Final = (
    "INSERT INTO {s}.scheduled AS s (topic, key, value, headers, id, time, target, due, schedule_id)"
)
REPLACE: Final = (
    "ON CONFLICT (topic, schedule_id) DO UPDATE SET seq = excluded.seq, due = excluded.due, time = excluded.time, "
    "id = excluded.id, key = excluded.key, value = excluded.value, headers = excluded.headers, target = excluded.target"
)
"""How `SCHEDULE` ends: INSERT … VALUES (…) ON CONFLICT …; without a `schedule_id`, NULL, nothing conflicts."""

INSERT_MANY: Final = f"""WITH known AS MATERIALIZED (SELECT name FROM {{s}}.topic WHERE name = ANY ($1::text[])),
    sent AS ({INSERT}
        SELECT m.topic, m.key, m.value, m.headers, m.id, m.time, m.target
        FROM unnest({", ".join(f"${n}::{kind}[]" for n, kind in enumerate(TYPES, 2))})
            WITH ORDINALITY m(topic, key, value, headers, id, time, target, n)
        WHERE m.topic IN (SELECT name FROM known) ORDER BY m.n)
    SELECT name FROM known"""  # noqa: S608 - our own texts; values are parameters
"""Columns of many messages, in their order; answers which of the topics exist, whose messages alone are stored."""

SCHEDULE_MANY: Final = f"""WITH known AS MATERIALIZED (SELECT name FROM {{s}}.topic WHERE name = ANY ($1::text[])),
    sent AS ({SCHEDULE}
        SELECT m.topic, m.key, m.value, m.headers, m.id, m.time, m.target, m.due, m.schedule_id
        FROM unnest({", ".join(f"${n}::{kind}[]" for n, kind in enumerate((*TYPES, "timestamptz", "text"), 2))})
            WITH ORDINALITY m(topic, key, value, headers, id, time, target, due, schedule_id, n)
        WHERE m.topic IN (SELECT name FROM known) ORDER BY m.n {REPLACE})
    SELECT name FROM known"""  # noqa: S608 - our own texts; values are parameters
"""The same for messages that are to come later."""

SCHEDULE_ANONYMOUS: Final = SCHEDULE_MANY.replace(REPLACE, "")
"""The same where none has a `schedule_id`: who may only insert may do that."""

_to_json: Final = msgspec.json.encode
_headers: Final = msgspec.json.Decoder(dict[str, str]).decode


ENDLESS: Final = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
"""Clients take these for what is before and after all time, which no reader knows."""


class Row(NamedTuple):
    """What one message is in `message`: a value for each of `COLUMNS`. `headers` is a JSON object of strings."""

    topic: str
    key: bytes | None
    value: bytes
    headers: str | None
    id: str | None
    time: datetime | None
    target: str | None


def pack(message: Message) -> Row:
    """A row for a message that has an id and a timestamp."""
    headers = message.headers
    packed = _to_json(headers).decode() if headers else None
    target = headers.get(REPLAY_GROUP) if headers else None
    return Row(message.topic, message.key, message.value, packed, message.id, message.timestamp, target)


def refusal(message: Message) -> PublishError | None:
    """Why a message can have no row, before a statement fails and its transaction with it."""
    if "\0" in message.topic or "\0" in (message.id or "") or "\0" in message.headers.get(REPLAY_GROUP, ""):
        return PublishError(
            f"publishing to {message.topic!r}: PostgreSQL takes no null character in a topic, a group or an id"
        )
    if message.timestamp in ENDLESS:
        return PublishError(
            f"publishing to {message.topic!r}: the time {message.timestamp} stands for infinity"
        )
    return None


def message_of(row: Row) -> Message:
    """The message of a row that has no place yet."""
    return Message(row.topic, row.value, row.key, _read(row.headers), timestamp=row.time, id=row.id)


def _read(headers: str | None) -> dict[str, str]:
    """The headers of a row; of what another program wrote as much as says anything, for the message is there all the same."""
    if not headers:
        return {}
    try:
        return _headers(headers)
    except msgspec.MsgspecError:
        try:
            told = msgspec.json.decode(headers)
        except msgspec.MsgspecError:
            return {}
        return {name: text_of(text) for name, text in told.items()} if isinstance(told, dict) else {}


class Page(NamedTuple):
    """Messages as columns; `attempts` and `suspects` are None where all are at their first."""

    offsets: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes]
    headers: Sequence[str | None]
    ids: Sequence[str]
    times: Sequence[datetime]
    attempts: Sequence[int] | None
    suspects: Sequence[int] | None


def unpack(topic: str, page: Page) -> list[Delivery]:
    """The deliveries of a page, in its order; a delivery's token is its offset."""
    attempts: Sequence[int] = page.attempts or [1] * len(page.offsets)
    columns: Any = zip(
        page.offsets, page.keys, page.values, page.headers, page.times, page.ids, attempts, strict=True
    )
    deliveries = [
        Delivery(
            Message(
                topic, value, key, _read(headers) if headers else {}, None, offset, time, number, attempt
            ),
            offset,
        )
        for offset, key, value, headers, time, number, attempt in columns
    ]
    if page.suspects is not None:
        for delivery, suspect in zip(deliveries, page.suspects, strict=True):
            delivery.suspect = suspect
    return deliveries
