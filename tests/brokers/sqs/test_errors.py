"""What AWS's errors mean to us."""

import asyncio

import pytest

pytest.importorskip("aiobotocore")

from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
)

from tests.brokers.sqs.given import refusal
from things_kit import ConfigError
from things_kit.brokers.sqs.errors import ERRORS, bare
from things_kit.engine.driver import ConnectionLost


class TestErrors:
    @pytest.mark.parametrize("code", ["Throttling", "ThrottledException", "InternalError", "KMSThrottling"])
    def test_a_busy_aws_is_waited_for(self, code: str) -> None:
        assert isinstance(ERRORS.translate(refusal(code), "publishing"), ConnectionLost)

    @pytest.mark.parametrize(
        ("code", "remedy"),
        [
            ("ExpiredToken", "renew them"),
            ("AccessDenied", "give them the permission"),
            ("InvalidClientTokenId", "does not know this access key"),
            ("SignatureDoesNotMatch", "does not fit"),
            ("KmsAccessDenied", "kms:Decrypt"),
        ],
    )
    def test_what_trying_again_does_not_mend_says_what_does(self, code: str, remedy: str) -> None:
        error = ERRORS.translate(
            refusal(code, "arn:aws:iam::1:user/x is not authorized"), "publishing to 'orders'"
        )
        assert isinstance(error, ConfigError)
        assert remedy in str(error)
        assert isinstance(error.__cause__, ClientError)

    def test_a_name_that_was_just_deleted_is_waited_for(self) -> None:
        error = ERRORS.translate(refusal("AWS.SimpleQueueService.QueueDeletedRecently"), "declaring")
        assert isinstance(error, ConnectionLost)
        assert "60 seconds" in str(error)

    def test_an_endpoint_that_is_away_is_waited_for(self) -> None:
        error = ERRORS.translate(EndpointConnectionError(endpoint_url="http://127.0.0.1:1/"), "asking")
        assert isinstance(error, ConnectionLost)

    def test_missing_credentials_are_final(self) -> None:
        assert isinstance(ERRORS.translate(NoCredentialsError(), "asking"), ConfigError)

    @pytest.mark.parametrize(
        "error", [refusal("NobodyEverHeardOfThis"), RuntimeError("a fault in the client")]
    )
    def test_what_nobody_knows_is_waited_for(
        self, error: Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert isinstance(ERRORS.translate(error, "asking"), ConnectionLost)
        assert "not an error that is known" in caplog.text

    def test_a_machine_that_gives_no_credentials_for_now_is_waited_for(self) -> None:
        error = CredentialRetrievalError(provider="iam-role", error_msg="timeout")
        assert isinstance(ERRORS.translate(error, "asking"), ConnectionLost)

    async def test_an_answer_that_does_not_come_is_a_lost_connection(self) -> None:
        with pytest.raises(ConnectionLost, match=r"no answer within 0\.01 s"):
            await bare(asyncio.Event().wait(), "asking", 0.01)
