"""What AWS's errors, and its client's, mean to us."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

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
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)

from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.engine.errors import ErrorTable, Failure, on, sentence
from things_kit.messaging.errors import ConfigError, MessageTooLarge

ANSWER: Final = 10.0
"""Seconds that AWS may take for an answer, the client's retries included."""

TRIES: Final = 3
"""How often an entry is sent that AWS itself failed to take, while it took others of the same request."""

PAUSE: Final = 0.1
"""Seconds between these."""

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

FORBIDDEN: Final = frozenset({
    "AccessDenied", "AccessDeniedException", "AuthorizationError", "AuthorizationErrorException",
})  # fmt: skip
"""These credentials may not do that."""

OVER_LIMIT: Final = frozenset({"OverLimit"})
"""As many messages of the queue are in flight as SQS allows."""

_REMEDIES: Final = {
    FORBIDDEN: "these credentials may not do that: give them the permission",
    frozenset({"ExpiredToken", "ExpiredTokenException"}): "the credentials have expired: renew them",
    frozenset({"RequestExpired"}): "the credentials have expired, or this machine's clock is wrong",
    frozenset({"InvalidClientTokenId", "InvalidAccessKeyId", "UnrecognizedClientException"}):
        "AWS does not know this access key: check the credentials, and the region",
    frozenset({"SignatureDoesNotMatch"}): "the secret key does not fit the access key, or this machine's clock is wrong",
    frozenset({"IncompleteSignature"}): "the credentials are not complete",
    frozenset({"MissingAuthenticationToken"}):
        "there are no credentials: set AWS_ACCESS_KEY_ID and its fellows, a profile or a role",
    frozenset({"OptInRequired"}): "this account has not opted in to the region or service",
    frozenset({"KmsAccessDenied", "KMSAccessDenied"}):
        "the key that encrypts it may not be used: allow kms:Decrypt and kms:GenerateDataKey",
    frozenset({"KmsDisabled", "KMSDisabled"}): "the key that encrypts it is disabled",
    frozenset({"KmsNotFound", "KMSNotFound"}): "the key that encrypts it is gone",
}  # fmt: skip
"""What the user can do about errors that trying again does not mend. AWS's own words for them quote accounts."""

_AWAY: Final = frozenset({
    "InternalError", "InternalErrorException", "InternalFailure", "KMSThrottling", "KmsThrottled",
    "PurgeQueueInProgress", "AWS.SimpleQueueService.PurgeQueueInProgress", "RequestLimitExceeded", "RequestThrottled",
    "ServiceUnavailable", "Throttled", "ThrottledException", "Throttling", "ThrottlingException", "TooManyRequestsException",
})  # fmt: skip
"""AWS is busy or failed: the client has tried several times, and trying again later may help."""

_WRONG: Final = frozenset({
    "AWS.SimpleQueueService.BatchEntryIdsNotDistinct", "AWS.SimpleQueueService.BatchRequestTooLong",
    "AWS.SimpleQueueService.EmptyBatchRequest", "AWS.SimpleQueueService.InvalidBatchEntryId",
    "AWS.SimpleQueueService.TooManyEntriesInBatchRequest", "AWS.SimpleQueueService.UnsupportedOperation",
    "BatchRequestTooLong", "FilterPolicyLimitExceeded", "InvalidAction", "InvalidAddress", "InvalidAttributeName",
    "InvalidAttributeValue", "InvalidIdFormat", "InvalidMessageContents", "InvalidParameter", "InvalidParameterException",
    "InvalidParameterValue", "InvalidParameterValueException", "InvalidSecurity", "KmsInvalidKeyUsage", "KmsInvalidState",
    "KmsOptInRequired", "MalformedQueryString", "MissingParameter", "ParameterValueInvalid", "QueueAlreadyExists",
    "QueueNameExists", "SubscriptionLimitExceeded", "TagLimitExceeded", "TagPolicy", "TopicLimitExceeded",
    "UnsupportedOperation", "ValidationError", "ValidationException",
})  # fmt: skip
"""What was asked for cannot be had, however often it is asked for."""

_NO_CREDENTIALS: Final = (
    NoCredentialsError, PartialCredentialsError, ProfileNotFound, ConfigNotFound, ConfigParseError, NoRegionError,
    InvalidRegionError, SSOError, UnauthorizedSSOTokenError,
)  # fmt: skip


def code_of(failure: Failure) -> str:
    """How AWS calls an error: one that was raised, or one of an entry of a batch."""
    if isinstance(failure, ClientError):
        return str(failure.response.get("Error", {}).get("Code", ""))
    return str(failure.get("Code", "")) if isinstance(failure, dict) else ""


def _words(failure: Failure) -> str:
    error = failure.response.get("Error", {}) if isinstance(failure, ClientError) else failure
    return str(error.get("Message") or "")


def _said(failure: Failure) -> str:
    if not isinstance(failure, ClientError | dict):
        return sentence(failure)
    code = code_of(failure)
    if any(code in codes for codes in _REMEDIES):
        return code
    return ": ".join(filter(None, (code, _words(failure))))


def _too_large(failure: Failure) -> bool:
    return isinstance(failure, ClientError | dict) and any(
        said in _words(failure) for said in ("too long", "shorter than")
    )


def _differs(failure: Failure) -> bool:
    return isinstance(failure, ClientError) and "already exists" in str(failure)


def _busy(failure: Failure) -> bool:
    if not isinstance(failure, ClientError):
        return False
    status = failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return bool(status >= 500 or status == 429)


def _untrusted(failure: Failure) -> bool:
    return isinstance(failure, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(failure)


ERRORS: Final = ErrorTable(
    "sqs",
    *(on(*codes, raises=ConfigError, hint=remedy) for codes, remedy in _REMEDIES.items()),
    on(
        _differs,
        raises=ConfigError,
        says="{doing}: it exists, with other attributes than are asked for: {said}",
        hint="those of topics and queues are the options topic.NAME and queue.NAME; a subscription of ours has "
        "RawMessageDelivery=true, and no filter policy",
    ),
    on(*MISSING, raises=ConnectionLost, publishing=UnknownTopic),
    on(
        *DELETED,
        raises=ConnectionLost,
        says="{doing}: a queue of that name was deleted; SQS allows another after 60 seconds",
    ),
    on(_too_large, raises=ConfigError, publishing=MessageTooLarge, says="{doing}: it is too large: {said}"),
    on(*_AWAY, _busy, raises=ConnectionLost),
    on(*_WRONG, *_NO_CREDENTIALS, ParamValidationError, raises=ConfigError),
    on(_untrusted, raises=ConfigError, hint="check the endpoint, and the option ca"),
    # The machine that gives credentials, too, is away now and then
    on(CredentialRetrievalError, TokenRetrievalError, raises=ConnectionLost),
    on(ConnectionError, HTTPClientError, HTTPError, raises=ConnectionLost),
    client=(ClientError, BotoCoreError, HTTPError, dict),
    code=code_of,
    said=_said,
)


async def ask(call: Awaitable[Any], doing: str, within: float = ANSWER) -> Any:
    """Await a call of the client, and translate its errors: for who does not look at what AWS answered."""
    return await ERRORS.ask(call, doing, within=within)


async def bare(call: Awaitable[Any], doing: str, within: float = ANSWER) -> Any:
    """Await a call of the client; what AWS answers comes as ClientError, all else is translated."""
    return await ERRORS.ask(call, doing, within=within, through=(ClientError,))


async def find(call: Awaitable[Any], doing: str) -> Any:
    """What AWS answers; None where there is no such queue or topic."""
    with ERRORS.during(doing):
        try:
            return await bare(call, doing)
        except ClientError as error:
            if code_of(error) in MISSING:
                return None
            raise


async def repeated(
    call: Callable[[Sequence[Any]], Awaitable[Any]], entries: Sequence[Any], doing: str
) -> dict[int, Any]:
    """Have a request of several entries taken, those again that AWS itself failed to take.

    Returns why it refused others, by their number; what it answers to all of them comes as ClientError. Raises ConnectionLost.
    """
    left = list(range(len(entries)))
    refused: dict[int, Any] = {}
    for tried in range(1, TRIES + 1):
        answer = await bare(call([{"Id": str(number), **entries[number]} for number in left]), doing)
        failed = {int(failure["Id"]): failure for failure in answer.get("Failed") or ()}
        refused |= {number: each for number, each in failed.items() if each.get("SenderFault")}
        left = [number for number in failed if number not in refused]
        if not left:
            return refused
        await asyncio.sleep(PAUSE * tried)
    raise ConnectionLost(f"{doing}: AWS failed at {len(left)} of {len(entries)}")
