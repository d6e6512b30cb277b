"""What pika's exceptions mean to us."""

import logging
import re
from typing import Final

from pika import exceptions

from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError

NOT_FOUND: Final = 404
MISMATCH: Final = 406
REFUSED: Final = 403

_DIFFERS: Final = re.compile(
    r"inequivalent arg '(?P<name>.*)' for (?P<what>queue|exchange) '(?P<of>.*)' in vhost '.*': "
    r"received (?P<asked>.*) but current is (?P<found>.*)",
    re.DOTALL,
)
_VALUE: Final = re.compile(r"^(?:the value )?'(?P<value>.*?)'(?: of type '.*')?$", re.DOTALL)
_TOO_LARGE: Final = re.compile(r"larger than (?:configured )?max size (\d+)")
_NONE: Final = re.compile(r"no (?:queue|exchange|binding) ")
_PASSES: Final = re.compile(r"is down|limit .*is reached|in exclusive use")
"""Refusals that end by themselves: of a virtual host that is starting, of one more connection, of a second consumer."""

KNOWN: Final = (exceptions.AMQPConnectionError, exceptions.AMQPChannelError, OSError, ConnectionLost)
"""What says that the broker is away, or has closed a channel. Anything else is a fault, here or in pika."""

log = logging.getLogger("things_kit.rabbitmq")


class NotWaited(ConfigError):
    """The queue is of a kind whose consumers cannot ask the broker to wait longer for them."""


def reason(error: BaseException | None) -> str:
    """A sentence for what happened, without secrets."""
    if isinstance(error, exceptions.ChannelClosed | exceptions.ConnectionClosed):
        return str(error.reply_text)
    if isinstance(error, TimeoutError):
        return str(error) or "it did not answer in time"
    return str(error) or type(error).__name__


def lost(error: BaseException | None, what: str = "the connection was lost") -> ConnectionLost:
    """The broker is away, or something failed that nobody knows: that is in the log whole, and tried again."""
    if error is not None and not isinstance(error, KNOWN):
        log.error("an unexpected error at RabbitMQ, which is taken for an outage: %r", error, exc_info=error)
    wrapped = ConnectionLost(f"{what}: {reason(error)}")
    wrapped.__cause__ = error
    return wrapped


def opening(error: BaseException, display: str) -> Exception:
    """What a connection that could not be opened means: refused for good, or away for now."""
    said = reason(error)
    if isinstance(error, exceptions.ProbableAuthenticationError | exceptions.AuthenticationError):
        if "ACCESS_REFUSED" not in said and "403" not in said:  # it went away while we logged in
            return lost(error, "it cannot be reached")
        refused = ConfigError(f"{display} refuses this user name or password")
        refused.__cause__ = error
        return refused
    if isinstance(error, exceptions.ProbableAccessDeniedError) and _is_final(said):
        denied = ConfigError(
            f"{display} does not let this user into its virtual host, or has none of that name: {said}"
        )
        denied.__cause__ = error
        return denied
    return lost(error, "it cannot be reached")


def _is_final(said: str) -> bool:
    return any(word in said for word in ("not found", "refused", "NOT_ALLOWED")) and not _PASSES.search(said)


def translated(error: Exception) -> Exception:
    """What the broker's refusal of a question means."""
    if not isinstance(error, exceptions.ChannelClosedByBroker):
        return error if isinstance(error, ConnectionLost | ConfigError) else lost(error)
    text = str(error.reply_text)
    if error.reply_code == MISMATCH and (found := _DIFFERS.search(text)):
        asked, there = plain(found["asked"]), plain(found["found"])
        answer: Exception = ConfigError(
            f"the {found['what']} {found['of']!r} exists with other arguments: {found['name']} is {there} there, "
            f"and {asked} is asked for; remove it, or give it another name"
        )
    elif error.reply_code == MISMATCH and "'x-consumer-timeout'" in text:
        answer = NotWaited(text)
    elif (error.reply_code == MISMATCH and "invalid arg" in text) or (
        error.reply_code == REFUSED and not _PASSES.search(text)
    ):
        answer = ConfigError(f"RabbitMQ refuses it: {text}")
    elif missing(error):
        answer = ConfigError(f"RabbitMQ has none: {text}")
    else:
        answer = ConnectionLost(text)
    answer.__cause__ = error
    return answer


def plain(told: str) -> str:
    """An argument's value out of RabbitMQ's sentence."""
    found = _VALUE.match(told.strip())
    return found["value"] if found else told.strip()


def missing(error: BaseException) -> bool:
    """Whether the broker says that there is no such queue or exchange."""
    return (
        isinstance(error, exceptions.ChannelClosedByBroker)
        and error.reply_code == NOT_FOUND
        and _NONE.search(str(error.reply_text)) is not None
    )


def missing_exchange(error: BaseException | None) -> str | None:
    """The exchange to which something was published, and which is not there."""
    if not isinstance(error, exceptions.ChannelClosedByBroker) or error.reply_code != NOT_FOUND:
        return None
    found = re.search(r"no exchange '(.*)' in vhost", str(error.reply_text), re.DOTALL)
    return found[1] if found else None


def refused_exchange(error: BaseException | None) -> str | None:
    """The exchange to which this user may not publish."""
    if not isinstance(error, exceptions.ChannelClosedByBroker) or error.reply_code != REFUSED:
        return None
    found = re.search(r"access to exchange '(.*)' in vhost", str(error.reply_text), re.DOTALL)
    return {"amq.default": ""}.get(found[1], found[1]) if found else None


def size_limit(error: BaseException | None) -> int | None:
    """How many bytes the broker takes, if it has closed a channel over a larger message."""
    if not isinstance(error, exceptions.ChannelClosedByBroker):
        return None
    found = _TOO_LARGE.search(str(error.reply_text))
    return int(found[1]) if found else None
