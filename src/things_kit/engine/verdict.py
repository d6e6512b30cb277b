"""What is to become of a message whose handler failed: a pure function of the error and the policy."""

import random
from typing import Final

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


PERMANENT: Final = (Reject, DecodeError, UnroutableError, ProcessDied)
"""Errors that another attempt cannot help."""


def judge(
    error: BaseException, attempt: int, policy: RetryPolicy, *, keep: bool, chance: random.Random
) -> float | None:
    """In how many seconds it is handled again, by the outcome table; None: it is given up.

    Args:
        error: What the handler raised.
        attempt: Which attempt that was, from 1.
        policy: How often to try.
        keep: Never give up, because there is no dead letter: after the last attempt go on at the policy's limit.
        chance: Where jitter comes from.
    """
    last = attempt >= policy.attempts
    if not keep and (last or isinstance(error, (*PERMANENT, *policy.permanent))):
        return None
    if isinstance(error, Retry) and error.wait is not None:
        return error.wait
    return longest_wait(policy, chance) if last else policy.wait(attempt, chance)


def longest_wait(policy: RetryPolicy, chance: random.Random) -> float:
    """Seconds until something is tried again that no attempt has changed, such as a dead letter that was refused."""
    return seconds(policy.limit, "RetryPolicy.limit") * (1.0 + policy.jitter * chance.random())
