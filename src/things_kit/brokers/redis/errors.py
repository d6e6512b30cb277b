"""The table from redis-py's exceptions, and the errors that Redis answers with, to ours."""

from typing import Any, Final

from redis import exceptions
from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.engine.errors import ErrorTable, on, sentence
from things_kit.messaging.errors import ConfigError, PublishError

_NOT_UNDERSTOOD: Final = (
    "unknown command",
    "unknown subcommand",
    "wrong number of",
    "syntax error",
    "DB index",
)

_NOT_ALLOWED: Final = ("ACL failure in script", "The user executing the script")
"""How Redis says so since 7.2, and before."""


def _of_a_closed_connection(error: Any) -> bool:
    """In a cluster one command can close a connection while another is about to write to it.

    redis-py then has no writer any more, or, up to some 3.12 and 3.13, asyncio's transport no function that writes.
    """
    if not isinstance(error, AttributeError | TypeError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    module: str = trace.tb_frame.f_globals["__name__"]
    if isinstance(error, AttributeError):
        return error.obj is None and module.startswith("redis.")
    return module.startswith("asyncio.") and trace.tb_frame.f_code.co_name == "writelines"


def _is_not_understood(error: Any) -> bool:
    return isinstance(error, exceptions.ResponseError) and any(
        words in str(error) for words in _NOT_UNDERSTOOD
    )


def _is_not_allowed(error: Any) -> bool:
    """What a script is not allowed, whose user the server does not let do everything that it does."""
    return isinstance(error, exceptions.ResponseError) and any(words in str(error) for words in _NOT_ALLOWED)


def _is_nobody(error: Any) -> bool:
    """A connection without a login, which the server tells of the command that it should have come with."""
    return isinstance(error, exceptions.RedisError) and "HELLO must be called" in str(error)


def _first_word(error: Any) -> str:
    """What the server's errors are known by; in a script's the client does not look for it."""
    return sentence(error).partition(" ")[0]


ERRORS: Final = ErrorTable(
    "redis",
    on(_is_nobody, raises=ConfigError, says="{doing}: Redis asks for a user and password, and the URL has none"),
    on(
        exceptions.AuthenticationError, exceptions.AuthenticationWrongNumberOfArgsError, exceptions.AuthorizationError,
        "NOAUTH", "WRONGPASS",
        raises=ConfigError, says="{doing}: Redis does not accept this login: {said}",
    ),
    on(
        exceptions.OutOfMemoryError, "OOM", "MISCONF",
        raises=ConnectionLost, publishing=PublishError, says="{doing}: Redis takes no more: {said}",
    ),
    on(
        exceptions.ConnectionError, exceptions.TimeoutError, exceptions.BusyLoadingError, exceptions.ReadOnlyError,
        exceptions.ClusterDownError, exceptions.MasterDownError, exceptions.TryAgainError, exceptions.MovedError,
        exceptions.RedisClusterException, exceptions.MaxConnectionsError, _of_a_closed_connection,
        "LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "NOREPLICAS", "BUSY", "UNBLOCKED", "MOVED", "ASK",
        raises=ConnectionLost,
    ),
    on(
        exceptions.NoPermissionError, "NOPERM", _is_not_allowed,
        raises=ConfigError, says="{doing}: Redis does not let this user do that: {said}",
    ),
    on(
        "WRONGTYPE",
        raises=ConfigError, says="{doing}: there is a key of this name that is no stream; use another name",
    ),
    on(_is_not_understood, raises=ConfigError, says="{doing}: Redis refused: {said}"),
    client=(exceptions.RedisError, exceptions.RedisClusterException, AttributeError, TypeError),
    code=_first_word,
)  # fmt: skip


def says(error: Exception, word: str) -> bool:
    """Whether the server's answer is this error, also where a script ran into it."""
    return isinstance(error, exceptions.ResponseError) and word in str(error)


def result_of(answer: Any, topic: str) -> Exception | None:
    """What became of what was sent, by the server's answer. Raises ConnectionLost."""
    if answer is None:
        return UnknownTopic(topic)
    if isinstance(answer, Exception) and not isinstance(answer, PublishError):
        refused = ERRORS.refusal(answer, topic)
        if isinstance(refused, ConnectionLost):
            raise refused
        return refused
    return answer if isinstance(answer, PublishError) else None
