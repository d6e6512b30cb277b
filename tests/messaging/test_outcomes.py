from datetime import timedelta

from things_kit import BatchError, MessageTooLarge, PublishError, Reject, Retry, ThingsKitError
from things_kit.messaging.errors import ConfigError, DecodeError, UnroutableError, UnsupportedError


def test_answers_of_a_handler_are_no_errors_of_ours() -> None:
    assert not isinstance(Retry(), ThingsKitError)
    assert not isinstance(Reject(), ThingsKitError)
    assert not isinstance(BatchError({}), ThingsKitError)


def test_retry_knows_when() -> None:
    assert Retry().after is None
    assert Retry(5).after == 5
    assert Retry(after=timedelta(minutes=1)).after == timedelta(minutes=1)


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
