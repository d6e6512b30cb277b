"""When something is planned: cron expressions and intervals."""

from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from things_kit.messaging.errors import ConfigError

INSTANT = timedelta(microseconds=1)


class Plan(Protocol):
    """Times that are planned, for ever."""

    def following(self, time: datetime) -> datetime:
        """The first one after this time, in UTC."""

    def latest(self, time: datetime) -> datetime:
        """The last one up to this time, in UTC."""


class Interval:
    """So many seconds apart, counted from 1970 on, so that every process has the same ones."""

    def __init__(self, apart: timedelta) -> None:
        if not timedelta(milliseconds=1) <= apart <= timedelta(days=366):
            raise ConfigError(f"every takes an interval from a millisecond to a year; it is {apart!r}")
        self._apart = apart

    def following(self, time: datetime) -> datetime:
        """See `Plan.following`."""
        return self.latest(time) + self._apart

    def latest(self, time: datetime) -> datetime:
        """See `Plan.latest`."""
        epoch = datetime.fromtimestamp(0, UTC)
        return epoch + (time - epoch) // self._apart * self._apart


class Cron:
    """A cron expression in a time zone; what daylight saving does to it is as in Debian's cron (by cronsim)."""

    def __init__(self, expression: str, zone: str) -> None:
        try:
            from cronsim import CronSim, CronSimError  # noqa: PLC0415 - an extra
        except ImportError:
            raise ConfigError('cronsim is not installed: pip install "things-kit[schedule]"') from None
        self._expression, self._zone = expression, _zone(zone)
        self._simulate: Any = CronSim
        try:
            self.following(datetime.now(UTC))
        except CronSimError as error:
            raise ConfigError(f"{expression!r} is no cron expression: {error}") from None
        except StopIteration:
            raise ConfigError(f"the cron expression {expression!r} never comes") from None

    def following(self, time: datetime) -> datetime:
        """See `Plan.following`."""
        found: datetime = next(self._simulate(self._expression, time.astimezone(self._zone)))
        return found.astimezone(UTC)

    def latest(self, time: datetime) -> datetime:
        """See `Plan.latest`."""
        if not time.microsecond:
            time += INSTANT  # else this very time would not count
        found: datetime = next(self._simulate(self._expression, time.astimezone(self._zone), reverse=True))
        return found.astimezone(UTC)


def plan_of(when: object, zone: str) -> Plan:
    """The plan that `every` was given. Raises ConfigError."""
    if isinstance(when, timedelta):
        _zone(zone)  # nothing of it is needed, and yet it is not to be wrong
        return Interval(when)
    if isinstance(when, str):
        return Cron(when, zone)
    raise ConfigError(f"every takes a cron expression or a timedelta; it was given {when!r}")


def _zone(name: object) -> ZoneInfo:
    try:
        return ZoneInfo(name)  # type: ignore[arg-type] # whatever it is, it is said
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise ConfigError(f"there is no time zone {name!r}") from None
