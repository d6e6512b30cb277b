import math
import pickle
from datetime import timedelta
from typing import Any

import pytest

from things_kit import BatchError, MessageTooLarge, PublishError, Reject, Retry, ThingsKitError
from things_kit.messaging.errors import ConfigError, DecodeError, UnroutableError, UnsupportedError
from things_kit.middleware import Later


def test_answers_of_a_handler_are_no_errors_of_ours() -> None:
    assert not isinstance(Retry(), ThingsKitError)
    assert not isinstance(Reject(), ThingsKitError)
    assert not isinstance(BatchError({}), ThingsKitError)


def test_retry_knows_when() -> None:
    assert Retry().after is None
    assert Retry(5).after == 5
    assert Retry(after=timedelta(minutes=1)).after == timedelta(minutes=1)


YEAR = 366 * 86400


@pytest.mark.parametrize(
    ("after", "wait", "remark"),
    [
        (None, None, ""),
        (5, 5.0, ""),
        (-5, 0.0, ""),
        (-math.inf, 0.0, ""),
        (timedelta(minutes=1), 60.0, ""),
        (timedelta.min, 0.0, ""),
        (YEAR, YEAR, ""),
        (1e12, YEAR, " after 1000000000000.0, of which no more than a year is waited"),
        (10**400, YEAR, ", of which no more than a year is waited"),
        (timedelta.max, YEAR, ", of which no more than a year is waited"),
        (math.inf, YEAR, " after inf, of which no more than a year is waited"),
        (math.nan, None, " after nan, which is no duration"),
        ("soon", None, " after 'soon', which is no duration"),
        (True, None, " after True, which is no duration"),
    ],
    ids=repr,
)
def test_retry_waits_a_year_at_most_and_says_so(after: Any, wait: float | None, remark: str) -> None:
    retry = Retry(after)
    assert retry.wait == wait
    assert str(retry).startswith("the handler asked for another attempt")
    assert str(retry).endswith(remark or "attempt")


def test_reject_knows_why() -> None:
    assert Reject("no stock").reason == str(Reject("no stock")) == "no stock"


def test_a_batch_error_keeps_its_own_copy_of_the_errors() -> None:
    errors: dict[int, BaseException] = {0: ValueError()}
    failed = BatchError(errors)
    errors.clear()
    assert list(failed.errors) == [0]


def test_a_publish_error_without_failures_has_none() -> None:
    assert PublishError("no").failures == {}
    assert MessageTooLarge("no").failures == {}


def test_every_error_of_ours_has_one_base() -> None:
    for kind in (ConfigError, DecodeError, MessageTooLarge, PublishError, UnroutableError, UnsupportedError):
        assert issubclass(kind, ThingsKitError)


class Busy(Retry):
    """As users make their own, with other arguments."""

    def __init__(self) -> None:
        super().__init__(after=7)


@pytest.mark.parametrize(
    "answer",
    [
        Retry(5),
        Retry(after=math.nan),
        Later(timedelta(seconds=3)),
        Reject("no"),
        Busy(),
        BatchError({1: ValueError("x")}),
    ],
    ids=repr,
)
def test_answers_come_out_of_another_process_as_they_went_in(answer: Exception) -> None:
    """A process pool whose worker raises what cannot be unpickled is broken, and all its work with it."""
    answer.add_note("by a worker")
    there = pickle.loads(pickle.dumps(answer))
    assert type(there) is type(answer)
    assert str(there) == str(answer)
    assert repr(vars(there)) == repr(vars(answer))
