"""What is to become of a message whose handler failed: a pure function of the error and the policy."""

import random
from typing import Final

import msgspec

from things_kit.messaging.errors import DecodeError, UnroutableError
from things_kit.messaging.outcomes import Reject, Retry
from things_kit.messaging.policy import RetryPolicy, seconds


class ProcessDied(Exception):
    """Every process that handled the message died, the last one while it handled nothing else."""

    def __init__(self, attempt: int) -> None:
        super().__init__(
            f"the process that handled this message died again and again, at last while it handled nothing else "
            f"(delivery {attempt - 1})"
        )


class TryAgain(msgspec.Struct, frozen=True):
    """Handle it again, `wait` seconds from now."""

    wait: float


PERMANENT: Final = (Reject, DecodeError, UnroutableError, ProcessDied)
"""Errors that another attempt cannot help."""


class Bury(msgspec.Struct, frozen=True):
    """Give it up: to the dead letter, or discarded."""


def judge(
    error: BaseException, attempt: int, policy: RetryPolicy, *, keep: bool, chance: random.Random
) -> TryAgain | Bury:
    """Decide by the outcome table.

    Args:
        error: What the handler raised.
        attempt: Which attempt that was, from 1.
        policy: How often to try.
        keep: Never give up, because there is no dead letter: after the last attempt go on at the policy's limit.
        chance: Where jitter comes from.
    """
    last = attempt >= policy.attempts
    if not keep and (last or isinstance(error, (*PERMANENT, *policy.permanent))):
        return Bury()
    if isinstance(error, Retry) and error.wait is not None:
        return TryAgain(error.wait)
    if last:
        return TryAgain(_limit(policy) * (1.0 + policy.jitter * chance.random()))
    return TryAgain(policy.wait(attempt, chance))


def after_lost_burial(policy: RetryPolicy, chance: random.Random) -> TryAgain:
    """When to try again a message whose dead letter could not be published."""
    return TryAgain(_limit(policy) * (1.0 + policy.jitter * chance.random()))


def _limit(policy: RetryPolicy) -> float:
    return seconds(policy.limit, "RetryPolicy.limit")
