"""What shows the rights to an entity: a token, signed by a shared access key, or had from Entra ID."""

import base64
import hashlib
import hmac
import time
from importlib import import_module
from typing import Any, Final
from urllib.parse import quote_plus

from things_kit.brokers.servicebus.options import Settings
from things_kit.messaging.errors import ConfigError

HOUR: Final = 3600
"""Seconds for which a token that we sign is good."""

SCOPE: Final = "https://servicebus.azure.net//.default"


def credential_of(settings: Settings) -> Any:
    """What azure-identity finds, to be closed by its owner; None where there is a key.

    Raises:
        ConfigError: There is no key, and azure-identity is not installed.
    """
    if settings.options.key is not None:
        return None
    try:
        return import_module("azure.identity.aio").DefaultAzureCredential()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{settings.url.display}: give ?key_name=…&key=…, or install what finds other credentials: "
            "pip install azure-identity"
        ) from error


async def token_for(audience: str, settings: Settings, credential: Any) -> tuple[str, str, float]:
    """The kind of a token, the token, and until when it is good, in seconds since 1970. Raises what a credential raises."""
    key = settings.options.key
    if key is None:
        found = await credential.get_token(SCOPE)
        return "jwt", found.token, found.expires_on
    until = int(time.time()) + HOUR
    scope, name = quote_plus(audience), quote_plus(settings.options.key_name or "")
    signed = hmac.digest(key.reveal().encode(), f"{scope}\n{until}".encode(), hashlib.sha256)
    signature = quote_plus(base64.b64encode(signed))
    return (
        "servicebus.windows.net:sastoken",
        f"SharedAccessSignature sr={scope}&sig={signature}&se={until}&skn={name}",
        until,
    )
