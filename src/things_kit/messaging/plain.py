"""What is of a derived class, such as a member of an Enum that is a `str` too, as what it is derived from."""

from datetime import UTC, datetime
from typing import Any


def plain(text: Any) -> Any:
    """The text alone: `f"{Topics.ORDERS}"` is not the value of a `class Topics(str, Enum)`, and some clients take no subclass.

    What is no text is returned as it is.
    """
    return str.__str__(text) if isinstance(text, str) else text


def plain_time(time: datetime) -> datetime:
    """The same moment, in UTC, of exactly that class: other classes' differences, texts and moments are their own."""
    utc = time.astimezone(UTC)
    if type(utc) is datetime:
        return utc
    return datetime(utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, utc.microsecond, UTC)
