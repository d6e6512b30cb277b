"""What RabbitMQ's refusals mean to us."""

import re
from typing import Final

from things_kit.brokers.rabbitmq.amqp.channel import Closed
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.errors import ErrorTable, Failure, on
from things_kit.messaging.errors import ConfigError

REFUSED: Final = 403
NOT_FOUND: Final = 404
MISMATCH: Final = 406
NOT_ALLOWED: Final = 530

_DIFFERS: Final = re.compile(
    r"inequivalent arg '(?P<name>.*)' for (?P<what>queue|exchange) '(?P<of>.*)' in vhost '.*': "
    r"received (?P<asked>.*) but current is (?P<found>.*)",
    re.DOTALL,
)
_VALUE: Final = re.compile(r"^(?:the value )?'(?P<value>.*?)'(?: of type '.*')?$", re.DOTALL)
_TOO_LARGE: Final = re.compile(r"larger than (?:configured )?max size (\d+)")
_NONE: Final = re.compile(r"no (?:queue|exchange|binding) ")
_EXCHANGE: Final = re.compile(r"(?:no|access to) exchange '(.*)' in vhost", re.DOTALL)
_PASSES: Final = re.compile(r"is down|limit .*is reached|in exclusive use")
"""Refusals that end by themselves: of a virtual host that is starting, of one more connection, of a second consumer."""


class NotWaited(ConfigError):
    """The queue is of a kind whose consumers cannot ask the broker to wait longer for them."""


def _said(failure: Failure) -> str:
    found = _DIFFERS.search(str(failure)) if isinstance(failure, Closed) else None
    if found is None:
        return str(failure)
    asked, there = _plain(found["asked"]), _plain(found["found"])
    return (
        f"the {found['what']} {found['of']!r} exists with other arguments: {found['name']} is {there} there, "
        f"and {asked} is asked for; remove it, or give it another name"
    )


def _plain(told: str) -> str:
    """An argument's value out of RabbitMQ's sentence."""
    found = _VALUE.match(told.strip())
    return found["value"] if found else told.strip()


def missing(failure: Failure) -> bool:
    """Whether the broker says that there is no such queue or exchange."""
    return (
        isinstance(failure, Closed) and failure.code == NOT_FOUND and _NONE.search(str(failure)) is not None
    )


def _passes(failure: Failure) -> bool:
    return _PASSES.search(str(failure)) is not None


def _cannot_be(failure: Failure) -> bool:
    return failure.code == MISMATCH and "invalid arg" in str(failure)


def _not_waited(failure: Failure) -> bool:
    return failure.code == MISMATCH and "'x-consumer-timeout'" in str(failure)


def _differs(failure: Failure) -> bool:
    return failure.code == MISMATCH and _DIFFERS.search(str(failure)) is not None


ERRORS: Final = ErrorTable(
    "rabbitmq",
    on(_passes, raises=ConnectionLost),
    on(_differs, raises=ConfigError, says="{said}"),
    on(_not_waited, raises=NotWaited),
    on(REFUSED, _cannot_be, raises=ConfigError, says="RabbitMQ refuses it: {said}"),
    on(missing, raises=ConfigError, says="RabbitMQ has none: {said}"),
    on(Closed, OverflowError, raises=ConnectionLost),
    client=Closed,
    code=lambda failure: failure.code,
    said=_said,
)

OPENING: Final = ERRORS.preceded_by(
    on(_passes, raises=ConnectionLost),
    on(REFUSED, raises=ConfigError, says="{doing} refuses this user name or password"),
    on(
        NOT_ALLOWED,
        raises=ConfigError,
        says="{doing} does not let this user into its virtual host, or has none of that name: {said}",
    ),
)
"""What keeps us from being let in."""


def lost(failure: Exception, doing: str = "the connection was lost") -> ConnectionLost:
    """It is over for now, whatever the reason: what was begun is begun anew."""
    meant = ERRORS.translate(failure, doing)
    if isinstance(meant, ConnectionLost):
        return meant
    over = ConnectionLost(f"{doing}: {meant}")
    over.__cause__ = failure
    return over


def refused_exchange(failure: Exception | None, code: int) -> str | None:
    """The exchange over which a channel was closed by this code, as something was published there."""
    if not isinstance(failure, Closed) or failure.code != code:
        return None
    found = _EXCHANGE.search(str(failure))
    return {"amq.default": ""}.get(found[1], found[1]) if found else None


def size_limit(failure: Exception | None) -> int | None:
    """How many bytes the broker takes, if it has closed a channel over a larger message."""
    found = _TOO_LARGE.search(str(failure)) if isinstance(failure, Closed) else None
    return int(found[1]) if found else None
