"""The table from redis-py's exceptions to ours."""

import contextlib
from collections.abc import Iterator
from typing import Final

from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MaxConnectionsError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError, PublishError

CLIENT_ERRORS: Final = (RedisError, RedisClusterException, OSError)
"""Everything that the client raises; RedisClusterException is none of its RedisError."""

_AWAY: Final = (
    RedisConnectionError, RedisTimeoutError, OSError, BusyLoadingError, ReadOnlyError, ClusterDownError, MasterDownError,
    TryAgainError, MovedError, RedisClusterException, MaxConnectionsError,
)  # fmt: skip

_AWAY_WORDS: Final = (
    "LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "NOREPLICAS", "BUSY", "UNBLOCKED", "MOVED", "ASK",
)  # fmt: skip
"""With what errors begin that pass; the client knows some of them only at the beginning of an answer, not in a script's."""

_FULL_WORDS: Final = ("OOM", "MISCONF")


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise what the client's errors mean, with them as the cause."""
    try:
        with closed_meanwhile():
            yield
    except CLIENT_ERRORS as error:
        raise meaning(error, doing) from error


@contextlib.contextmanager
def closed_meanwhile() -> Iterator[None]:
    """Make one of the client's errors of what nobody means to raise: it wants to write to a connection that was closed."""
    try:
        yield
    except (AttributeError, TypeError) as error:
        if not _is_of_a_closed_one(error):
            raise
        raise RedisConnectionError("the connection was closed meanwhile") from error


def _is_of_a_closed_one(error: AttributeError | TypeError) -> bool:
    """In a cluster one command can close a connection while another is about to write to it.

    redis-py then has no writer any more, or, up to some 3.12 and 3.13, asyncio's transport no function that writes.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    module: str = trace.tb_frame.f_globals["__name__"]
    if isinstance(error, AttributeError):
        return error.obj is None and module.startswith("redis.")
    return module.startswith("asyncio.") and trace.tb_frame.f_code.co_name == "writelines"


def meaning(error: Exception, doing: str) -> Exception:
    """ConnectionLost where waiting may help, else ConfigError. Sentences have the server's words, never a login."""
    said = sentence(error)
    if isinstance(error, AuthenticationError | AuthenticationWrongNumberOfArgsError | AuthorizationError):
        return ConfigError(f"{doing}: Redis does not accept this login: {said}")
    if isinstance(error, _AWAY) or said.startswith(_AWAY_WORDS) or is_full(error):
        return ConnectionLost(f"{doing}: {said}")
    if said.startswith(("NOAUTH", "WRONGPASS")):
        return ConfigError(f"{doing}: Redis does not accept this login: {said}")
    if isinstance(error, NoPermissionError) or said.startswith("NOPERM"):
        return ConfigError(f"{doing}: Redis does not let this user do that: {said}")
    if said.startswith("WRONGTYPE"):
        return ConfigError(f"{doing}: there is a key of this name that is no stream; use another name")
    return ConfigError(f"{doing}: Redis refused: {said}")


def refusal(error: Exception, topic: str) -> Exception:
    """What became of one message that the server refused; ConnectionLost where sending it again may help."""
    doing = f"publishing to {topic!r}"
    if is_full(error):
        what: Exception = PublishError(f"{doing}: Redis takes no more: {sentence(error)}")
    else:
        what = meaning(error, doing)
        if isinstance(what, ConfigError):
            what = PublishError(str(what))
    what.__cause__ = error
    return what


def is_full(error: Exception) -> bool:
    """Whether the server has no memory or disk left to write to."""
    return isinstance(error, OutOfMemoryError) or (
        isinstance(error, ResponseError) and sentence(error).startswith(_FULL_WORDS)
    )


def says(error: Exception, word: str) -> bool:
    """Whether the server's answer is this error, also where a script ran into it."""
    return isinstance(error, ResponseError) and word in str(error)


def sentence(error: Exception) -> str:
    """What the client has to say, in one line; some of its errors say nothing."""
    return " ".join(str(error).split()) or type(error).__name__
