"""What Service Bus's refusals, those of its management API, and a lost connection mean."""

from typing import Any, Final

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)

from things_kit.brokers.servicebus.amqp.connection import FRAMING, LOST, AmqpError
from things_kit.brokers.servicebus.amqp.links import CLOSED
from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.engine.errors import ErrorTable, on
from things_kit.messaging.errors import ConfigError, MessageTooLarge

GONE: Final = {
    "com.microsoft:message-lock-lost",
    "com.microsoft:session-lock-lost",
    "com.microsoft:message-not-found",
}
"""Somebody else has the message."""

NO_SESSION: Final = {"com.microsoft:timeout", "com.microsoft:session-cannot-be-locked"}
"""There was no session with messages in time."""

TOO_LARGE: Final = "amqp:link:message-size-exceeded"

REFUSALS: Final = (
    "amqp:decode-error",
    "amqp:invalid-field",
    "amqp:not-allowed",
    "amqp:not-implemented",
    "amqp:precondition-failed",
    "com.microsoft:argument-error",
    "com.microsoft:argument-out-of-range",
    "com.microsoft:precondition-failed",
    TOO_LARGE,
)
"""It is no use to ask for the same again."""


def _code(error: Any) -> Any:
    return error.condition if isinstance(error, AmqpError) else getattr(error, "status_code", None)


def _is_answer(error: Any) -> bool:
    status = _code(error)
    return isinstance(error, HttpResponseError) and isinstance(status, int) and 400 <= status < 500


ERRORS: Final = ErrorTable(
    "servicebus",
    on(
        "amqp:unauthorized-access", "com.microsoft:auth-failed", 401, 403, ClientAuthenticationError,
        raises=ConfigError, says="{doing}: Service Bus refuses this key or identity: {said}",
        hint="where it may not manage topics, connect with ?declare=false",
    ),
    on(
        "amqp:not-found", "amqp:resource-deleted", ResourceNotFoundError,
        raises=ConfigError, publishing=UnknownTopic, says="{doing}: there is no such entity: declare it first",
    ),
    on(
        "com.microsoft:entity-disabled",
        raises=ConnectionLost, says="{doing}: it is disabled; enable it again in the portal",
    ),
    on(
        "amqp:resource-limit-exceeded",
        raises=ConnectionLost,
        says="{doing}: a quota is used up, so there is no room until messages are taken: {said}",
    ),
    on(
        TOO_LARGE,
        raises=ConfigError, publishing=MessageTooLarge, says="{doing}: Service Bus finds it too large: {said}",
        hint="Standard takes 256 KiB with all that is around it, Premium what the topic's settings say",
    ),
    on(*REFUSALS, raises=ConfigError, says="{doing}: Service Bus refuses it: {said}"),
    on(408, 409, 429, ServiceRequestError, ServiceResponseError, raises=ConnectionLost),
    on(_is_answer, raises=ConfigError),
    on(
        LOST, CLOSED, "amqp:connection:forced", FRAMING, "amqp:internal-error",
        "amqp:link:detach-forced", "com.microsoft:server-busy", *NO_SESSION, *GONE, HttpResponseError,
        raises=ConnectionLost,
    ),
    client=(AmqpError, AzureError),
    code=_code,
)  # fmt: skip
