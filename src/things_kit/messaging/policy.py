"""How a consumer treats failures and batches."""

import random
from datetime import timedelta
from enum import Enum
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from things_kit.messaging.errors import ConfigError

Seconds: TypeAlias = float | timedelta
"""A duration: seconds, or a timedelta."""

Ordering: TypeAlias = Literal["key", "partition", "none"]
Start: TypeAlias = Literal["earliest", "latest"]


LONGEST: Final = 366.0 * 86400
"""Seconds that anything may take or wait: a year. Clocks, timers and brokers fail one after another beyond that."""


def seconds(duration: Seconds, name: str, minimum: float = 0.0) -> float:
    """A duration in seconds.

    Raises ConfigError, naming the argument, if it is no duration, below `minimum`, or longer than a year.
    """
    value = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if not is_number(value) or not value >= minimum:
        raise ConfigError(f"{name} must be a duration in seconds, at least {minimum:g}; it is {duration!r}")
    if value > LONGEST:
        raise ConfigError(f"{name} must be at most {LONGEST:.0f} seconds, a year; it is {duration!r}")
    return float(value)


def is_number(value: object) -> bool:
    """Whether this is a number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class Discard(Enum):
    """The type of `DISCARD`."""

    DISCARD = "DISCARD"


DISCARD: Final = Discard.DISCARD
"""As `dead_letter`: a message that fails for good is logged, counted and acknowledged."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often and how long after each other a failing message is tried.

    Attributes:
        attempts: Handling attempts in all, the first included.
        first: Wait before the second attempt, in seconds; grows by `factor` up to `limit`.
        factor: By how much the wait grows each time.
        limit: The longest wait, before jitter.
        jitter: A random share of the wait, from 0 to this, is added to it, so that failures spread.
        mode: "in_place" keeps the order of a key through retries; "delayed" puts the message aside
            and lets its key go on.
        permanent: Exception types for which trying again cannot help: dead letter at once.
    """

    attempts: Annotated[int, Meta(ge=1)] = 5
    first: Annotated[Seconds, Meta(ge=0)] = 0.1
    factor: Annotated[float, Meta(ge=1)] = 2.0
    limit: Annotated[Seconds, Meta(ge=0)] = 30.0
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.1
    mode: Literal["in_place", "delayed"] = "in_place"
    permanent: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise ConfigError(f"RetryPolicy.attempts must be a whole number from 1; it is {self.attempts!r}")
        seconds(self.first, "RetryPolicy.first")
        seconds(self.limit, "RetryPolicy.limit")
        if not is_number(self.factor) or not self.factor >= 1.0:
            raise ConfigError(f"RetryPolicy.factor must be at least 1; it is {self.factor!r}")
        if not is_number(self.jitter) or not 0.0 <= self.jitter <= 1.0:
            raise ConfigError(f"RetryPolicy.jitter must be from 0 to 1; it is {self.jitter!r}")
        if self.mode not in {"in_place", "delayed"}:
            raise ConfigError(f'RetryPolicy.mode must be "in_place" or "delayed"; it is {self.mode!r}')
        permanent = self.permanent
        if not isinstance(permanent, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in permanent
        ):
            raise ConfigError(
                f"RetryPolicy.permanent must be a tuple of exception types; it is {permanent!r}"
            )

    def wait(self, attempt: int, chance: random.Random) -> float:
        """Seconds between the failure of this attempt, counted from 1, and the next attempt."""
        first, limit = seconds(self.first, "first"), seconds(self.limit, "limit")
        if not first:
            return 0.0
        try:
            wait = min(first * self.factor ** (attempt - 1), limit)
        except OverflowError:
            wait = limit
        return wait * (1.0 + self.jitter * chance.random())


class Batch(msgspec.Struct, frozen=True):
    """Hand the handler lists: of up to `size` messages, waiting up to `wait` seconds for one to fill."""

    size: Annotated[int, Meta(ge=1)] = 100
    wait: Annotated[Seconds, Meta(ge=0)] = 0.05

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ConfigError(f"Batch.size must be a whole number from 1; it is {self.size!r}")
        seconds(self.wait, "Batch.wait")
