"""The tables from nats-py's exceptions, and the errors that JetStream answers with, to ours."""

import ssl
from collections.abc import Hashable
from typing import Any, Final

import msgspec
from nats.errors import Error

from things_kit.engine.driver import ConnectionLost
from things_kit.engine.errors import ErrorTable, on
from things_kit.messaging.errors import ConfigError, MessageTooLarge


class Refusal(msgspec.Struct, frozen=True):
    """An error of JetStream's API."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Refused(Exception):
    """JetStream said no."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.description or str(refusal.code))
        self.refusal = refusal


class NoResponders(Exception):
    """Nobody listens on the subject: there is no such stream or consumer, or no JetStream."""


def answer(data: bytes) -> dict[str, Any]:
    """JetStream's answer to a question. Raises Refused."""
    said: dict[str, Any] = msgspec.json.decode(data)
    if said.get("error"):
        raise Refused(msgspec.convert(said["error"], Refusal, strict=False))
    return said


CONSUMER_NOT_FOUND: Final = 10014
STREAM_NOT_FOUND: Final = 10059
STREAM_NAME_IN_USE: Final = 10058
NO_SUCH_MESSAGE: Final = (10043, 10057)
"""The latter also where nobody may delete any."""


def _code(error: Any) -> Hashable:
    return error.refusal.err_code if isinstance(error, Refused) else None


def _is_too_much(error: Any) -> bool:
    """What passes: requests are limited, or JetStream is not there at the moment."""
    return isinstance(error, Refused) and error.refusal.code in {429, 503}


def _is_bad_request(error: Any) -> bool:
    """What would be refused again: JetStream uses this code of HTTP's for what it was asked wrongly."""
    return isinstance(error, Refused) and error.refusal.code == 400


def _is_login(error: Any) -> bool:
    said = str(error).lower()
    return any(word in said for word in ("authorization violation", "authentication", "credentials"))


ERRORS: Final = ErrorTable(
    "nats",
    on(10054, 10097, raises=ConfigError, publishing=MessageTooLarge),
    # No leader, no quorum, not ready, too much at once; what was there a moment ago
    on(10004, 10005, 10008, 10009, 10041, 10048, 10131, 10167, raises=ConnectionLost),
    on(CONSUMER_NOT_FOUND, STREAM_NOT_FOUND, raises=ConnectionLost),
    on(NoResponders, raises=ConnectionLost, says="{doing}: nobody answers for JetStream"),
    on(10039, raises=ConfigError, hint="JetStream is not enabled for this account"),
    on(10076, raises=ConfigError, hint="JetStream is not enabled: start the server with -js"),
    on(10023, raises=ConfigError, hint="the server has no room for that: check its limits, max_bytes and replicas"),
    on(10028, raises=ConfigError, hint="the account may hold no more"),
    on(10047, raises=ConfigError, hint="the server's disk or its limit for storage is full"),
    on(10074, raises=ConfigError, hint="replicas needs a cluster of as many servers"),
    on(10065, raises=ConfigError, hint="another stream takes a part of these subjects"),
    on(10077, raises=ConfigError, hint="the stream is full and refuses new messages"),
    on(10109, raises=ConfigError, hint="the stream is sealed"),
    on(_is_too_much, raises=ConnectionLost),
    on(_is_bad_request, raises=ConfigError),
    on(Error, raises=ConnectionLost),
    client=(Refused, NoResponders, Error),
    code=_code,
)  # fmt: skip

OPENING: Final = ERRORS.preceded_by(
    on(NoResponders, raises=ConfigError, says="{doing}: nobody answers: start the server with JetStream (-js)"),
    on(_is_login, raises=ConfigError, says="{doing}: it does not accept this login: check user, password, token or credentials"),
    on(ssl.SSLError, raises=ConfigError, says="{doing}: the TLS handshake failed: check ca, cert and key: {said}"),
)  # fmt: skip
"""What counts while a connection is opened: who was let in once, and had JetStream, is not wrong about these."""


class Confirmation(msgspec.Struct, frozen=True):
    """What a stream says of a message that was published."""

    error: Refusal | None = None


confirmation: Final = msgspec.json.Decoder(Confirmation).decode
