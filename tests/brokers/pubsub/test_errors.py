"""What the client's errors mean to us."""

from typing import Any

import pytest

pytest.importorskip("google.pubsub_v1")

from google.api_core import exceptions
from google.auth.exceptions import RefreshError
from google.rpc.error_details_pb2 import ErrorInfo

from things_kit import BrokerUnavailable, ConfigError, MessageTooLarge, PublishError, connect
from things_kit.brokers.pubsub.errors import ERRORS, failures
from things_kit.engine.driver import ConnectionLost, UnknownTopic

_exceptions: Any = exceptions  # which has no annotations
_RefreshError: Any = RefreshError


@pytest.mark.parametrize(
    ("error", "ours", "said"),
    [
        (_exceptions.ServiceUnavailable("x"), ConnectionLost, "doing: x"),
        (_exceptions.ResourceExhausted("x"), ConnectionLost, "quota"),
        (_exceptions.DeadlineExceeded("x"), ConnectionLost, "x"),
        (_RefreshError("invalid_grant: hunter2"), ConnectionLost, "no token"),
        (_exceptions.ServiceUnavailable("Getting metadata from plugin failed with error: hunter2"), ConnectionLost, "no token"),
        (_exceptions.PermissionDenied("x"), ConfigError, "declare=false"),
        (_exceptions.Unauthenticated("x"), ConfigError, "does not accept these credentials"),
        (_exceptions.InvalidArgument("x"), ConfigError, "doing: x"),
    ],
)  # fmt: skip
def test_errors_are_translated_with_a_sentence(error: Exception, ours: type[Exception], said: str) -> None:
    translation = ERRORS.translate(error, "doing")
    assert type(translation) is ours
    assert said in str(translation)
    assert "hunter2" not in str(translation)
    assert translation.__cause__ is error


def test_refusals_of_messages_are_told_apart() -> None:
    assert isinstance(ERRORS.refusal(_exceptions.NotFound("x"), "orders"), UnknownTopic)
    assert isinstance(
        ERRORS.refusal(_exceptions.InvalidArgument("size exceeds the limit"), "orders"), MessageTooLarge
    )
    assert type(ERRORS.refusal(_exceptions.InvalidArgument("schema"), "orders")) is PublishError
    assert type(ERRORS.refusal(_exceptions.PermissionDenied("x"), "orders")) is PublishError
    assert isinstance(ERRORS.refusal(_exceptions.ResourceExhausted("x"), "orders"), ConnectionLost)


def test_only_settlements_count_as_failed_settlements() -> None:
    told = {"service": "pubsub", "1": "PERMANENT_FAILURE_INVALID_ACK_ID", "2": "TRANSIENT_FAILURE_X"}
    error = _exceptions.FailedPrecondition("x", error_info=ErrorInfo(metadata=told))
    assert set(failures(error)) == {"1", "2"}
    assert failures(_exceptions.PermissionDenied("x")) == {}


async def test_nobody_there_is_unavailable_in_time() -> None:
    broker = connect("pubsub://my-project?endpoint=127.0.0.1:1&publish_timeout=0.3")
    with pytest.raises(BrokerUnavailable, match="did not answer"):
        await broker.open()
    await broker.close()
