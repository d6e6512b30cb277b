"""What refusals and lost connections mean."""

import pytest
from azure.core.exceptions import HttpResponseError, ServiceRequestError

from things_kit import ConfigError, MessageTooLarge, PublishError
from things_kit.brokers.servicebus.amqp.connection import LOST, AmqpError
from things_kit.brokers.servicebus.errors import ERRORS, TOO_LARGE
from things_kit.engine.driver import ConnectionLost, UnknownTopic


def http(status: int | None) -> HttpResponseError:
    error = HttpResponseError("it says so")
    error.status_code = status
    return error


@pytest.mark.parametrize(
    ("error", "means", "publishing"),
    [
        (AmqpError("amqp:unauthorized-access"), ConfigError, PublishError),
        (AmqpError("amqp:not-found"), ConfigError, UnknownTopic),
        (AmqpError(TOO_LARGE), ConfigError, MessageTooLarge),
        (AmqpError("com.microsoft:argument-error"), ConfigError, PublishError),
        (AmqpError("com.microsoft:entity-disabled"), ConnectionLost, ConnectionLost),
        (AmqpError("amqp:resource-limit-exceeded"), ConnectionLost, ConnectionLost),
        (AmqpError("com.microsoft:server-busy"), ConnectionLost, ConnectionLost),
        (AmqpError(LOST), ConnectionLost, ConnectionLost),
        (TimeoutError(), ConnectionLost, ConnectionLost),
        (http(401), ConfigError, PublishError),
        (http(400), ConfigError, PublishError),
        (http(429), ConnectionLost, ConnectionLost),
        (http(503), ConnectionLost, ConnectionLost),
        (http(None), ConnectionLost, ConnectionLost),
        (ServiceRequestError("no route"), ConnectionLost, ConnectionLost),
    ],
    ids=str,
)
def test_it_means(error: Exception, means: type[Exception], publishing: type[Exception]) -> None:
    assert ERRORS.knows(error)
    assert type(ERRORS.translate(error, "asking")) is means
    assert type(ERRORS.refusal(error, "orders")) is publishing


@pytest.mark.parametrize("error", [AmqpError("com.microsoft:something-new"), ValueError("a fault of ours")])
def test_what_nobody_knows_is_an_outage(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    assert type(ERRORS.translate(error, "asking")) is ConnectionLost
    assert "not an error that is known" in caplog.text


def test_tokens_are_in_no_sentence() -> None:
    error = AmqpError("amqp:unauthorized-access", "bad SharedAccessSignature sr=x&sig=geheim&se=1&skn=Root")
    assert "geheim" not in str(ERRORS.translate(error, "asking"))
