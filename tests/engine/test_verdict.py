import math
import random
from datetime import timedelta

import pytest

from things_kit import DecodeError, Reject, Retry, RetryPolicy, UnroutableError
from things_kit.engine.verdict import judge, longest_wait

POLICY = RetryPolicy(attempts=3, first=1.0, factor=2.0, limit=30.0, jitter=0.0, permanent=(KeyError,))
CHANCE = random.Random(1)


def verdict(
    error: BaseException, attempt: int = 1, *, keep: bool = False, policy: RetryPolicy = POLICY
) -> object:
    return judge(error, attempt, policy, keep=keep, chance=CHANCE)


@pytest.mark.parametrize(
    ("error", "attempt", "wanted"),
    [
        (ValueError(), 1, 1.0),
        (ValueError(), 2, 2.0),
        (ValueError(), 3, None),
        (ValueError(), 4, None),
        (TimeoutError(), 1, 1.0),
        (Retry(), 2, 2.0),
        (Retry(after=5), 2, 5.0),
        (Retry(after=0), 1, 0.0),
        (Retry(after=-5), 1, 0.0),
        (Retry(after=timedelta(minutes=2)), 1, 120.0),
        (Retry(after=1e12), 1, 366 * 86400.0),
        (Retry(after=math.nan), 1, 1.0),
        (Retry(after=5), 3, None),
        (Reject(), 1, None),
        (DecodeError(), 1, None),
        (UnroutableError(), 1, None),
        (KeyError(), 1, None),
        (LookupError(), 1, 1.0),
    ],
    ids=repr,
)
def test_the_outcome_table(error: BaseException, attempt: int, wanted: object) -> None:
    assert verdict(error, attempt) == wanted


@pytest.mark.parametrize(
    ("error", "attempt", "wait"),
    [
        (Reject(), 1, 1.0),
        (DecodeError(), 2, 2.0),
        (KeyError(), 1, 1.0),
        (ValueError(), 3, 30.0),
        (ValueError(), 1000, 30.0),
        (Retry(after=5), 1000, 5.0),
        (Retry(), 1000, 30.0),
        (Reject(), 1000, 30.0),
    ],
    ids=repr,
)
def test_without_a_dead_letter_nothing_is_given_up(error: BaseException, attempt: int, wait: float) -> None:
    assert verdict(error, attempt, keep=True) == wait


def test_subclasses_of_permanent_errors_are_permanent() -> None:
    class Worse(KeyError): ...

    class MyReject(Reject): ...

    assert verdict(Worse()) is None
    assert verdict(MyReject()) is None


def test_the_limit_may_be_a_timedelta() -> None:
    policy = RetryPolicy(attempts=1, limit=timedelta(minutes=1), jitter=0.0)
    assert verdict(ValueError(), 9, keep=True, policy=policy) == 60.0
    assert longest_wait(policy, CHANCE) == 60.0


def test_a_kept_message_and_a_lost_dead_letter_come_again_with_jitter() -> None:
    policy = RetryPolicy(attempts=1, limit=10.0, jitter=0.5)
    waits = {judge(ValueError(), 9, policy, keep=True, chance=random.Random(n)) for n in range(9)}
    waits |= {longest_wait(policy, random.Random(n)) for n in range(9)}
    assert len(waits) == 9
    assert all(wait is not None and 10.0 <= wait <= 15.0 for wait in waits)
