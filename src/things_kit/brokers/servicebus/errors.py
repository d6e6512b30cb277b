"""From the exceptions of Azure's package to the engine's."""

import re
from typing import Final

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageSizeExceededError,
    MessagingEntityDisabledError,
    MessagingEntityNotFoundError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusError,
    ServiceBusQuotaExceededError,
    SessionLockLostError,
)

from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError

CLIENT: Final = (AzureError, OSError)
"""What the client raises. What breaks inside of it where its connection goes, it makes a ServiceBusError of."""

GONE: Final = (MessageLockLostError, SessionLockLostError)
"""Somebody else has the message."""

UNKNOWN: Final = (MessagingEntityNotFoundError, ResourceNotFoundError)
"""There is no such topic, subscription or queue."""

DENIED: Final = (ServiceBusAuthenticationError, ServiceBusAuthorizationError, ClientAuthenticationError)

AWAY: Final = (ServiceRequestError, ServiceResponseError)

_SIGNATURE: Final = re.compile(r"(?i)(SharedAccessSignature\s|sig=|SharedAccessKey=|Bearer\s)\S+")


def translated(error: BaseException, doing: str) -> Exception:
    """What the engine is told when the client failed at something."""
    said = sentence(error)
    if isinstance(error, DENIED) or (
        isinstance(error, HttpResponseError) and error.status_code in {401, 403}
    ):
        return ConfigError(f"{doing}: Service Bus refuses this key or identity: {said}")
    if isinstance(error, MessagingEntityDisabledError):
        return ConnectionLost(f"{doing}: it is disabled; enable it again in the portal")
    if isinstance(error, ServiceBusQuotaExceededError):
        return ConnectionLost(
            f"{doing}: a quota is used up, so there is no room until messages are taken: {said}"
        )
    if isinstance(error, UNKNOWN):
        return ConfigError(f"{doing}: there is no such entity: declare it first")
    if isinstance(error, HttpResponseError) and not isinstance(error, AWAY):
        busy = error.status_code is None or error.status_code in {408, 429} or error.status_code >= 500
        return (ConnectionLost if busy else ConfigError)(f"{doing}: {said}")
    return ConnectionLost(f"{doing}: {said}")


def is_too_large(error: BaseException) -> bool:
    """Whether the service or the client found a message too large."""
    return isinstance(error, MessageSizeExceededError)


def is_refusal(error: BaseException) -> bool:
    """Whether the service has answered, for good, that it does not take this; sending it again is no use."""
    if isinstance(error, (ServiceBusQuotaExceededError, *GONE, *UNKNOWN)):
        return False
    return isinstance(error, ServiceBusError) and not getattr(error, "_retryable", True)


def sentence(error: BaseException) -> str:
    """The first line of what it says, without anything secret."""
    lines = str(error).strip().splitlines()
    return _SIGNATURE.sub(r"\1…", lines[0])[:500].rstrip(".") if lines else type(error).__name__
