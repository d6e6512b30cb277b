"""Messages that come later: when, and what is said of them until then."""

import math
from datetime import UTC, datetime, timedelta

import msgspec

from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message


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
    now: float, after: float | None, at: datetime | None, schedule_id: str | None = None
) -> datetime | None:
    """When a message is due, in UTC; None for one that is published at once.

    Raises:
        ConfigError: The arguments are no time, or do not go together.
    """
    if schedule_id is not None:
        if not isinstance(schedule_id, str) or not schedule_id:
            raise ConfigError(f"schedule_id= must be a name; it is {schedule_id!r}")
        if after is None and at is None:
            raise ConfigError(f"schedule_id={schedule_id!r} is for a message with a time: give after= or at=")
    if at is not None:
        if after is not None:
            raise ConfigError("after= and at= exclude each other: a message has one time")
        return _moment(at)
    return None if after is None else _in_seconds(now, after)


def _moment(at: datetime) -> datetime:
    if not isinstance(at, datetime) or at.utcoffset() is None:
        raise ConfigError(f"at= must be an aware datetime, such as datetime.now(UTC); it is {at!r}")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ConfigError(f"at={at!r} is no time in UTC") from None


def _in_seconds(now: float, after: float) -> datetime:
    if isinstance(after, bool) or not isinstance(after, int | float) or math.isnan(after) or after < 0:
        raise ConfigError(f"after= must be a number of seconds, from 0; it is {after!r}")
    try:
        return datetime.fromtimestamp(now, UTC) + timedelta(seconds=after)
    except OverflowError:
        raise ConfigError(f"after={after!r} is beyond the year 9999") from None
