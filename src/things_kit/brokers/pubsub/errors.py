"""What the client's errors mean to us."""

from collections.abc import Mapping
from typing import Final

from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError

from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.engine.errors import ErrorTable, Failure, on, sentence
from things_kit.messaging.errors import ConfigError, MessageTooLarge

AWAY: Final = (
    exceptions.Aborted,
    exceptions.Cancelled,
    exceptions.GatewayTimeout,
    exceptions.InternalServerError,
    exceptions.RetryError,
    exceptions.ServiceUnavailable,
    exceptions.Unknown,
)
"""The service is away, moving or busy: trying again may help."""

WRONG: Final = (
    exceptions.AlreadyExists,
    exceptions.BadRequest,
    exceptions.MethodNotImplemented,
)
"""What was asked for cannot be had, however often it is asked for."""


def _no_token(error: Failure) -> bool:
    """Whether google-auth got none, by itself or in a call of gRPC."""
    return isinstance(error, GoogleAuthError) or "Getting metadata from plugin failed" in str(error)


def _untrusted(error: Failure) -> bool:
    """Whether it is what OpenSSL says of a certificate that nobody whom we trust has signed."""
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def _too_large(error: Failure) -> bool:
    return isinstance(error, exceptions.InvalidArgument) and "exceeds the limit" in str(error)


def _said(error: Failure) -> str:
    return str(getattr(error, "message", None) or sentence(error))


ERRORS: Final = ErrorTable(
    "pubsub",
    on(
        _no_token,
        raises=ConnectionLost,
        says="{doing}: Google gave no token for these credentials: they may be expired, or the network away",
    ),
    on(_untrusted, raises=ConfigError, hint="check the option ca: it signs the endpoint's certificate"),
    on(_too_large, raises=ConfigError, publishing=MessageTooLarge, says="{doing}: it is too large: {said}"),
    on(exceptions.NotFound, raises=ConfigError, publishing=UnknownTopic),
    on(
        exceptions.Unauthenticated,
        raises=ConfigError,
        hint="it does not accept these credentials: they are wrong, expired or of another service",
    ),
    on(
        exceptions.PermissionDenied,
        raises=ConfigError,
        hint="these credentials may not do that: they need a role for it, such as Pub/Sub Editor; with declare=false, "
        "Publisher or Subscriber is enough",
    ),
    on(exceptions.ResourceExhausted, raises=ConnectionLost, hint="a quota of the project is used up"),
    on(*AWAY, raises=ConnectionLost),
    on(*WRONG, raises=ConfigError),
    client=(exceptions.GoogleAPIError, GoogleAuthError),
    said=_said,
)

SETTLING: Final = ERRORS.preceded_by(
    on(exceptions.NotFound, raises=ConnectionLost, says="{doing}: the subscription was removed")
)
"""For a subscription that we have: if it is gone, so is its topic; the engine makes both anew, if it may."""


def failures(error: Exception) -> Mapping[str, str]:
    """Of a refused settlement under exactly-once delivery: which ack ids failed, and why; empty if nothing is said.

    All others of that request are settled (cloud.google.com/pubsub/docs/exactly-once-delivery).
    """
    said: Mapping[str, str] = getattr(error, "metadata", None) or {}
    return {ack_id: why for ack_id, why in said.items() if why.startswith(("PERMANENT_F", "TRANSIENT_F"))}
