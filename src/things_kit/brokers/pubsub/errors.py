"""What the client's errors mean to us."""

from collections.abc import Mapping
from typing import Final

from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError

from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError

AWAY: Final = (
    exceptions.Aborted,
    exceptions.Cancelled,
    exceptions.DeadlineExceeded,
    exceptions.GatewayTimeout,
    exceptions.InternalServerError,
    exceptions.ResourceExhausted,
    exceptions.RetryError,
    exceptions.ServiceUnavailable,
    exceptions.Unknown,
)
"""The service is away, moving or busy: trying again may help."""

ERRORS: Final = (exceptions.GoogleAPIError, GoogleAuthError)
"""What calls of the client raise."""

LOGIN_FAILED: Final = "Getting metadata from plugin failed"
"""How gRPC begins to say that google-auth got no token."""

UNTRUSTED: Final = "CERTIFICATE_VERIFY_FAILED"
"""What OpenSSL calls a certificate that nobody whom we trust has signed."""

_REMEDY: Final[Mapping[type[Exception], str]] = {
    exceptions.Unauthenticated: "it does not accept these credentials: they are wrong, expired or of another service",
    exceptions.PermissionDenied: "these credentials may not do that: they need a role for it, such as Pub/Sub Editor; "
    "with declare=false, Publisher or Subscriber is enough",
    exceptions.ResourceExhausted: "a quota of the project is used up",
}
"""What the user can do about it."""


def translated(error: Exception, doing: str) -> Exception:
    """Ours for an error of the client: ConnectionLost or ConfigError, with that as its cause."""
    if isinstance(error, GoogleAuthError) or LOGIN_FAILED in str(error):
        ours: Exception = ConnectionLost(
            f"{doing}: Google gave no token for these credentials ({type(error).__name__}): they may be expired, or "
            "the network away"
        )
    elif UNTRUSTED in str(error):
        ours = ConfigError(
            f"{sentence(error, doing)} (check the option ca: it signs the endpoint's certificate)"
        )
    elif isinstance(error, AWAY):
        ours = ConnectionLost(sentence(error, doing))
    else:
        ours = ConfigError(sentence(error, doing))
    ours.__cause__ = error
    return ours


def refused(error: Exception, topic: str) -> Exception:
    """Ours for why a message was not taken. ConnectionLost: it may be taken later."""
    if isinstance(error, exceptions.NotFound):
        ours: Exception = UnknownTopic(topic)
    elif isinstance(error, exceptions.InvalidArgument) and "exceeds the limit" in str(error):
        ours = MessageTooLarge(f"a message for {topic!r} is too large: {error.message}")
    else:
        ours = translated(error, f"publishing to {topic!r}")
        if isinstance(ours, ConfigError):
            ours = PublishError(str(ours))
    ours.__cause__ = error
    return ours


def sentence(error: Exception | None, doing: str) -> str:
    """What the service said, and what to do about it. Without an error it ended the stream politely."""
    if error is None:
        return f"{doing}: the service ended the stream"
    said = getattr(error, "message", None) or str(error) or type(error).__name__
    remedy = next((text for kind, text in _REMEDY.items() if isinstance(error, kind)), None)
    return f"{doing}: {said}" + (f" ({remedy})" if remedy else "")


def failures(error: Exception) -> Mapping[str, str]:
    """Of a refused settlement under exactly-once delivery: which ack ids failed, and why; empty if nothing is said.

    All others of that request are settled (cloud.google.com/pubsub/docs/exactly-once-delivery).
    """
    said: Mapping[str, str] = getattr(error, "metadata", None) or {}
    return {ack_id: why for ack_id, why in said.items() if why.startswith(("PERMANENT_F", "TRANSIENT_F"))}
