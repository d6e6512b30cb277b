import math
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from things_kit import DISCARD, Batch, ConfigError, Reject, RetryPolicy
from things_kit.messaging.policy import seconds


class Always(random.Random):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


def test_waits_grow_by_the_factor_up_to_the_limit() -> None:
    policy = RetryPolicy(first=0.5, factor=3.0, limit=10.0, jitter=0.0)
    assert [policy.wait(n, random.Random()) for n in range(1, 6)] == [0.5, 1.5, 4.5, 10.0, 10.0]


def test_durations_may_be_timedeltas() -> None:
    policy = RetryPolicy(first=timedelta(milliseconds=500), limit=timedelta(seconds=1), jitter=0.0)
    assert [policy.wait(n, random.Random()) for n in (1, 2, 3)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(("chance", "wait"), [(0.0, 10.0), (0.5, 11.0), (1.0, 12.0)])
def test_jitter_adds_a_share_of_the_wait(chance: float, wait: float) -> None:
    assert RetryPolicy(first=10.0, jitter=0.2).wait(1, Always(chance)) == pytest.approx(wait)


@given(
    attempt=st.integers(1, 10**6),
    first=st.floats(0, 1e6),
    factor=st.floats(1, 1e9),
    limit=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
)
def test_a_wait_is_never_beyond_its_limit_and_jitter(
    attempt: int, first: float, factor: float, limit: float, jitter: float
) -> None:
    policy = RetryPolicy(first=first, factor=factor, limit=limit, jitter=jitter)
    wait = policy.wait(attempt, random.Random(attempt))
    assert 0 <= wait <= limit * (1 + jitter) * 1.0000001


@given(attempt=st.integers(1, 10**6))
def test_no_first_wait_means_no_wait_ever(attempt: int) -> None:
    assert RetryPolicy(first=0.0, jitter=0.0).wait(attempt, random.Random()) == 0.0


def test_an_infinite_factor_goes_to_the_limit_at_once() -> None:
    assert RetryPolicy(first=1.0, factor=math.inf, jitter=0.0).wait(2, random.Random()) == 30.0
    assert not math.isnan(RetryPolicy(first=0.0, factor=math.inf).wait(2, random.Random()))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"attempts": 0}, "RetryPolicy.attempts must be a whole number from 1; it is 0"),
        ({"attempts": 1.5}, "RetryPolicy.attempts must be a whole number from 1; it is 1.5"),
        ({"attempts": True}, "RetryPolicy.attempts must be a whole number from 1; it is True"),
        ({"attempts": None}, "RetryPolicy.attempts must be a whole number from 1; it is None"),
        ({"first": -1}, "RetryPolicy.first must be a duration in seconds, at least 0; it is -1"),
        ({"first": math.nan}, "RetryPolicy.first must be a duration"),
        ({"first": timedelta(seconds=-1)}, "RetryPolicy.first must be a duration"),
        ({"first": math.inf}, "RetryPolicy.first must be at most 31622400 seconds, a year; it is inf"),
        ({"first": 1e12}, "RetryPolicy.first must be at most 31622400 seconds, a year"),
        ({"limit": timedelta.max}, "RetryPolicy.limit must be at most 31622400 seconds, a year"),
        ({"limit": 10**400}, "RetryPolicy.limit must be at most 31622400 seconds, a year"),
        ({"limit": "30"}, "RetryPolicy.limit must be a duration in seconds, at least 0; it is '30'"),
        ({"limit": True}, "RetryPolicy.limit must be a duration"),
        ({"factor": 0.5}, "RetryPolicy.factor must be at least 1; it is 0.5"),
        ({"factor": math.nan}, "RetryPolicy.factor must be at least 1"),
        ({"factor": "2"}, "RetryPolicy.factor must be at least 1; it is '2'"),
        ({"jitter": 1.5}, "RetryPolicy.jitter must be from 0 to 1; it is 1.5"),
        ({"jitter": "some"}, "RetryPolicy.jitter must be from 0 to 1; it is 'some'"),
        ({"mode": "later"}, 'RetryPolicy.mode must be "in_place" or "delayed"; it is \'later\''),
        ({"permanent": ValueError}, "RetryPolicy.permanent must be a tuple of exception types"),
        ({"permanent": (5,)}, "RetryPolicy.permanent must be a tuple of exception types"),
        ({"permanent": (int,)}, "RetryPolicy.permanent must be a tuple of exception types"),
    ],
    ids=str,
)
def test_a_policy_that_makes_no_sense_is_refused_with_a_sentence(
    arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        RetryPolicy(**arguments)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"size": 0}, "Batch.size must be a whole number from 1; it is 0"),
        ({"size": 2.0}, "Batch.size must be a whole number from 1; it is 2.0"),
        ({"size": False}, "Batch.size must be a whole number from 1; it is False"),
        ({"wait": -0.1}, "Batch.wait must be a duration in seconds, at least 0; it is -0.1"),
        ({"wait": None}, "Batch.wait must be a duration"),
        ({"wait": math.inf}, "Batch.wait must be at most 31622400 seconds, a year"),
    ],
    ids=str,
)
def test_a_batch_that_makes_no_sense_is_refused_with_a_sentence(
    arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        Batch(**arguments)
    assert sentence in str(raised.value)


def test_exceptions_of_every_base_may_be_permanent() -> None:
    assert RetryPolicy(permanent=(ValueError, Reject, SystemError)).permanent == (
        ValueError,
        Reject,
        SystemError,
    )


@pytest.mark.parametrize("duration", [0, 0.0, 5, timedelta(0)])
def test_a_duration_is_a_number_of_seconds(duration: float | timedelta) -> None:
    assert isinstance(seconds(duration, "it"), float)


def test_discard_says_what_it_is() -> None:
    assert "DISCARD" in repr(DISCARD)
