"""What AWS's errors, and its client's, mean to us."""

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from aiohttp import ClientError as HTTPError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    ConnectionError,  # noqa: A004 - botocore's own, of which the builtin knows nothing
    CredentialRetrievalError,
    HTTPClientError,
    InvalidRegionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)

from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError, PublishError

ResultT = TypeVar("ResultT")

ANSWER: Final = 10.0
"""Seconds that AWS may take for an answer, the client's retries included."""

MISSING: Final = frozenset({
    "AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "NotFound", "NotFoundException", "ResourceNotFoundException",
})  # fmt: skip
"""There is no such queue or topic."""

DELETED: Final = frozenset({"AWS.SimpleQueueService.QueueDeletedRecently", "QueueDeletedRecently"})
EXISTS: Final = frozenset({"QueueAlreadyExists", "QueueNameExists"})
STALE: Final = frozenset({
    "ReceiptHandleIsInvalid", "MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight", "InvalidParameterValue",
})  # fmt: skip
"""The lease of a message was lost: somebody else has it, or did it."""

ALLOWED: Final = frozenset(
    {"AccessDenied", "AccessDeniedException", "AuthorizationError", "AuthorizationErrorException"}
)
"""These credentials may not do that."""

OVER_LIMIT: Final = frozenset({"OverLimit"})
"""As many messages of the queue are in flight as SQS allows."""

_REFUSED: Final = {
    "AccessDenied": "these credentials may not do that: give them the permission",
    "AccessDeniedException": "these credentials may not do that: give them the permission",
    "AuthorizationError": "these credentials may not do that: give them the permission",
    "AuthorizationErrorException": "these credentials may not do that: give them the permission",
    "ExpiredToken": "the credentials have expired: renew them",
    "ExpiredTokenException": "the credentials have expired: renew them",
    "RequestExpired": "the credentials have expired, or this machine's clock is wrong",
    "InvalidClientTokenId": "AWS does not know this access key: check the credentials, and the region",
    "InvalidAccessKeyId": "AWS does not know this access key: check the credentials, and the region",
    "UnrecognizedClientException": "AWS does not know this access key: check the credentials, and the region",
    "SignatureDoesNotMatch": "the secret key does not fit the access key, or this machine's clock is wrong",
    "IncompleteSignature": "the credentials are not complete",
    "MissingAuthenticationToken": "there are no credentials: set AWS_ACCESS_KEY_ID and its fellows, a profile or a role",
    "OptInRequired": "this account has not opted in to the region or service",
    "KmsAccessDenied": "the key that encrypts it may not be used: allow kms:Decrypt and kms:GenerateDataKey",
    "KMSAccessDenied": "the key that encrypts it may not be used: allow kms:Decrypt and kms:GenerateDataKey",
    "KmsDisabled": "the key that encrypts it is disabled",
    "KMSDisabled": "the key that encrypts it is disabled",
    "KmsNotFound": "the key that encrypts it is gone",
    "KMSNotFound": "the key that encrypts it is gone",
}
"""What the user can do about errors that trying again does not mend."""

_AWAY: Final = frozenset({
    "InternalError", "InternalErrorException", "InternalFailure", "KMSThrottling", "KmsThrottled",
    "PurgeQueueInProgress", "AWS.SimpleQueueService.PurgeQueueInProgress", "RequestLimitExceeded", "RequestThrottled",
    "ServiceUnavailable", "Throttled", "ThrottledException", "Throttling", "ThrottlingException", "TooManyRequestsException",
})  # fmt: skip
"""AWS is busy or failed: the client has tried several times, and trying again later may help."""

_NO_CREDENTIALS: Final = (
    NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound, ConfigNotFound,
    ConfigParseError, NoRegionError, InvalidRegionError, SSOError, TokenRetrievalError, UnauthorizedSSOTokenError,
)  # fmt: skip


def code_of(error: ClientError) -> str:
    """How AWS calls an error."""
    return str(error.response.get("Error", {}).get("Code", ""))


def translated(error: Exception, doing: str) -> Exception:
    """Ours for one of the client's, while asking for something: ConnectionLost, ConfigError or PublishError."""
    if isinstance(error, ClientError):
        ours = _of_answer(error, doing)
    elif isinstance(error, _NO_CREDENTIALS):
        ours = ConfigError(f"{doing}: {_sentence(error)}")
    elif isinstance(error, SSLError):
        ours = ConfigError(f"{doing}: {_sentence(error)} (check the endpoint, and the option ca)")
    elif isinstance(error, ConnectionError | HTTPClientError | HTTPError | OSError):
        ours = ConnectionLost(f"{doing}: {_sentence(error)}")
    else:
        ours = ConfigError(f"{doing}: {_sentence(error)}")
    ours.__cause__ = error
    return ours


def _of_answer(error: ClientError, doing: str) -> Exception:
    code = code_of(error)
    said = str(error.response.get("Error", {}).get("Message") or code or error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _REFUSED:
        return ConfigError(f"{doing}: {code} ({_REFUSED[code]})")
    if code in DELETED:
        return ConnectionLost(
            f"{doing}: a queue of that name was deleted; SQS allows another after 60 seconds"
        )
    if code in _AWAY or code in MISSING or status >= 500 or status == 429:
        return ConnectionLost(f"{doing}: {code}: {said}")
    return ConfigError(f"{doing}: {code}: {said}")


def refused(code: str, said: str, topic: str) -> PublishError:
    """Why AWS did not take one message of several."""
    remedy = f" ({_REFUSED[code]})" if code in _REFUSED else ""
    return PublishError(f"publishing to {topic!r}: {code}: {said}{remedy}")


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


async def ask(call: Awaitable[Any], doing: str, within: float = ANSWER) -> Any:
    """Await a call of the client, and translate its errors: for who does not look at what AWS answered."""
    try:
        return await bare(call, doing, within)
    except ClientError as error:
        raise translated(error, doing) from error


async def bare(call: Awaitable[Any], doing: str, within: float = ANSWER) -> Any:
    """Await a call of the client; what AWS answers comes as ClientError, all else is translated."""
    limit = asyncio.timeout(within)
    try:
        async with limit:
            return await call
    except ClientError:
        raise
    except TimeoutError as error:
        if not limit.expired():
            raise translated(error, doing) from error
        raise ConnectionLost(f"{doing}: no answer within {within:g} s") from error
    except (BotoCoreError, HTTPError, OSError) as error:
        raise translated(error, doing) from error
