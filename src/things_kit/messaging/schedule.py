"""Messages that come later: when, and what is said of them until then."""

from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message
from things_kit.messaging.plain import plain_time
from things_kit.messaging.policy import Seconds, is_number

FARTHEST: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""What is later is due then: brokers keep seconds as floats, which round the last moments up to the year 10000."""

LONGEST_ID: Final = 512
"""Bytes of a `schedule_id` in UTF-8: with the longest name of a topic it fits into an entry of a database's index."""


class Schedule(msgspec.Struct, frozen=True):
    """A message that waits for its time.

    Attributes:
        schedule_id: By which it can be cancelled or replaced; None where it was given none.
        due: When it is to arrive, in UTC.
        message: As it was published.
    """

    schedule_id: str | None
    due: datetime
    message: Message


def due_at(
    now: float, after: Seconds | None, at: datetime | None, schedule_id: str | None = None
) -> datetime | None:
    """When a message is due, in UTC; None for one that is published at once.

    Raises:
        ConfigError: The arguments are no time, or do not go together.
    """
    if schedule_id is not None:
        check_schedule_id(schedule_id)
        if after is None and at is None:
            raise ConfigError(f"schedule_id={schedule_id!r} is for a message with a time: give after= or at=")
    if at is not None:
        if after is not None:
            raise ConfigError("after= and at= exclude each other: a message has one time")
        return min(_moment(at), FARTHEST)
    return None if after is None else min(_in_seconds(now, after), FARTHEST)


def check_schedule_id(name: object) -> None:
    """Raise ConfigError unless this is text, not empty, that every broker can keep."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"schedule_id= must be a name; it is {name!r}")
    if "\0" in name:
        raise ConfigError(f"schedule_id= can have no null character; it is {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"schedule_id= is not text that UTF-8 can carry: {name!r}") from None
    if size > LONGEST_ID:
        raise ConfigError(f"schedule_id= has {size} bytes, and may have {LONGEST_ID}: {name[:40]!r}…")


def _moment(at: datetime) -> datetime:
    if not isinstance(at, datetime) or at.utcoffset() is None:
        raise ConfigError(f"at= must be an aware datetime, such as datetime.now(UTC); it is {at!r}")
    try:
        return plain_time(at)
    except (OverflowError, TypeError, ValueError):
        raise ConfigError(f"at={at!r} is no time in UTC") from None


def _in_seconds(now: float, after: Seconds) -> datetime:
    wait = after.total_seconds() if isinstance(after, timedelta) else after
    if not is_number(wait) or not wait >= 0:  # NaN is neither
        raise ConfigError(f"after= must be a number of seconds, from 0, or a timedelta; it is {after!r}")
    try:
        return datetime.fromtimestamp(now, UTC) + timedelta(seconds=wait)
    except OverflowError:
        raise ConfigError("after= is beyond the year 9999") from None
