"""What PostgreSQL's errors mean to us, by their SQLSTATE or its class."""

from typing import Any, Final

import asyncpg

from things_kit.brokers.postgres.functions import EXPIRED, GONE, NO_GROUP, NO_TOPIC
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.errors import ErrorTable, on, sentence
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError

READ_ONLY: Final = "25006"

VALUE: Final = ("22000", "22003", "22007", "22008", "22021", "22P02", "22P03", "22P05", "23514")
"""SQLSTATEs of values that are none here; the first is also what the client says."""

TOO_LARGE: Final = ("22001", "54000", "54001")

CLIENT: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def code_of(error: Any) -> str | None:
    """The SQLSTATE; None where the client itself has failed."""
    return getattr(error, "sqlstate", None)


def is_of_a_value(error: Any) -> bool:
    """Whether it is about one of the values that were sent: beside others, of one message."""
    return code_of(error) in {*VALUE, *TOO_LARGE}


def _of_class(*classes: str) -> Any:
    return lambda error: (code_of(error) or "").startswith(classes)


def _is_closed(error: Any) -> bool:
    return isinstance(error, asyncpg.InterfaceError) and "closed" in str(error)


RIGHTS: Final = (
    "{doing}: the user lacks a right: {said} (see the page of PostgreSQL in our docs for the GRANTs)"
)
OTHER_TABLES: Final = (
    "{doing}: the tables in this schema are not what this version of the library makes: {said}"
)

ERRORS: Final = ErrorTable(
    "postgres",
    on(GONE, EXPIRED, raises=ConnectionLost),
    on(NO_TOPIC, NO_GROUP, raises=ConfigError, says="{said}"),
    on("42501", raises=ConfigError, says=RIGHTS),
    on(READ_ONLY, raises=ConnectionLost, says="{doing}: the server is read-only, as a replica is: {said}"),
    on(
        "57014",
        raises=ConnectionLost,
        says="{doing}: the server gave up: {said} (see statement_timeout of the user)",
    ),
    on(
        "25P03",
        "25P04",
        raises=ConnectionLost,
        says="{doing}: the server ended the transaction: {said} (see the timeouts of the user)",
    ),
    on("55P03", raises=ConnectionLost, says="{doing}: something else holds a lock: {said}"),
    on("53100", raises=ConnectionLost, publishing=PublishError, says="{doing}: the disk is full: {said}"),
    on("53300", raises=ConnectionLost, says="{doing}: the server has too many connections: {said}"),
    on(*TOO_LARGE, raises=MessageTooLarge),
    on("22021", raises=ConfigError, says="{doing}: PostgreSQL takes no null character in a text"),
    on(*VALUE, raises=ConfigError, says="{doing}: PostgreSQL cannot keep this value: {said}"),
    on("42P01", "42883", "42703", "42804", "3F000", raises=ConfigError, says=OTHER_TABLES),
    on(_of_class("08", "40", "53", "55", "57", "58", "XX"), raises=ConnectionLost),
    # These speak of the client's own states, in which a connection is that the server has left
    on(
        asyncpg.InternalClientError,
        _is_closed,
        raises=ConnectionLost,
        says="{doing}: the server has closed the connection",
    ),
    on(asyncpg.InterfaceError, raises=ConnectionLost),
    on(asyncpg.InvalidCachedStatementError, raises=ConnectionLost),
    client=CLIENT,
    code=code_of,
    said=lambda error: sentence(getattr(error, "message", None) or error),
)

OPENING: Final = ERRORS.preceded_by(
    on("28P01", "28000", raises=ConfigError, says="{doing}: it does not let this user in: {said}"),
    on("3D000", raises=ConfigError, says="{doing}: {said}"),
    on(asyncpg.ClientConfigurationError, raises=ConfigError),
    on(
        asyncpg.TargetServerAttributeNotMatched,
        raises=ConnectionLost,
        says="{doing}: none of the hosts can be written to",
    ),
)
"""While a connection is made: a wrong login or database is a mistake of who set it up."""
