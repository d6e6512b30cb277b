"""What JetStream answers, and what its errors mean to us."""

from typing import Any, Final

import msgspec

from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError


class Refusal(msgspec.Struct, frozen=True):
    """An error of JetStream's API."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Confirmation(msgspec.Struct, frozen=True):
    """What a stream says of a message that was published."""

    error: Refusal | None = None


class Refused(Exception):
    """JetStream said no."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.description)
        self.refusal = refusal


class NoResponders(Exception):
    """Nobody listens on the subject: there is no such stream or consumer, or no JetStream."""


confirmation: Final = msgspec.json.Decoder(Confirmation).decode


def answer(data: bytes) -> dict[str, Any]:
    """The answer to a question. Raises Refused."""
    said: dict[str, Any] = msgspec.json.decode(data)
    if said.get("error"):
        raise Refused(msgspec.convert(said["error"], Refusal, strict=False))
    return said


# --- the error table

CONSUMER_NOT_FOUND: Final = 10014
STREAM_NOT_FOUND: Final = 10059
STREAM_NAME_IN_USE: Final = 10058

_TOO_LARGE: Final = frozenset({10054, 10097})
_AWAY: Final = frozenset({10004, 10005, 10008, 10009, 10041, 10048, 10131, 10167})
"""No leader, no quorum, not ready, too much at once: trying again may help."""

_REMEDY: Final = {
    10039: "JetStream is not enabled for this account",
    10076: "JetStream is not enabled: start the server with -js",
    10023: "the server has no room for that: check its limits, max_bytes and replicas",
    10028: "the account may hold no more",
    10047: "the server's disk or its limit for storage is full",
    10074: "replicas needs a cluster of as many servers",
    10065: "another stream takes a part of these subjects",
    10077: "the stream is full and refuses new messages",
    10109: "the stream is sealed",
}


def _says(refusal: Refusal) -> str:
    remedy = f" ({_REMEDY[refusal.err_code]})" if refusal.err_code in _REMEDY else ""
    return f"{refusal.description or refusal.code}{remedy}"


def temporary(refusal: Refusal) -> bool:
    """Whether trying again may help."""
    return (
        refusal.err_code in _AWAY
        or refusal.code == 429
        or (refusal.code == 503 and refusal.err_code not in _REMEDY)
    )


def translated(error: Refused | NoResponders, doing: str) -> Exception:
    """Ours for one of JetStream's, while asking for something: ConnectionLost or ConfigError."""
    if isinstance(error, NoResponders):
        ours: Exception = ConfigError(f"{doing}: nobody answers: start the server with JetStream (-js)")
    elif temporary(error.refusal):
        ours = ConnectionLost(f"{doing}: {_says(error.refusal)}")
    else:
        ours = ConfigError(f"{doing}: {_says(error.refusal)}")
    ours.__cause__ = error
    return ours


def unpublished(refusal: Refusal, topic: str) -> Exception:
    """Ours for why a message was not taken."""
    if temporary(refusal):
        ours: Exception = ConnectionLost(f"publishing to {topic!r}: {_says(refusal)}")
    elif refusal.err_code in _TOO_LARGE:
        ours = MessageTooLarge(f"a message for {topic!r} is too large for its stream: {_says(refusal)}")
    else:
        ours = PublishError(f"publishing to {topic!r}: {_says(refusal)}")
    ours.__cause__ = Refused(refusal)
    return ours
