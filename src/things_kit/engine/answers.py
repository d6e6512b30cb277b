"""What is sent to who has asked: the reply to a request, or what its handler failed with."""

from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from things_kit.codecs.models import dumped_for_json
from things_kit.engine.clock import steady
from things_kit.engine.dead_letter import ERROR_BYTES, qualified_name, rfc3339, text_of
from things_kit.engine.secrets import masked
from things_kit.messaging.message import RESERVED_PREFIX, Message
from things_kit.messaging.names import (
    CONTENT_TYPE,
    CORRELATION_ID,
    DEADLINE,
    ERROR,
    ERROR_TYPE,
    OF_A_REQUEST,
    REPLY_TO,
)

BEYOND: Final = 256
"""Characters beyond what is sent in which the end of a secret is looked for."""

_json: Final = msgspec.json.Encoder(enc_hook=dumped_for_json)


class Expired(Exception):
    """How a request leaves the worker whose deadline has passed: nobody waits for it any more."""


def misses_deadline(request: Message, wait: float = 0.0) -> bool:
    """Whether the request's deadline has passed in so many seconds; one that is no time is none."""
    try:
        deadline = datetime.fromisoformat(request.headers[DEADLINE])
    except (KeyError, ValueError):
        return False
    if deadline.tzinfo is None:
        deadline = deadline.replace(tzinfo=UTC)
    return steady() + wait > deadline.timestamp()


def requested(message: Message, reply_to: str, correlation_id: str, timeout: float) -> Message:
    """The message as a request."""
    deadline = rfc3339(datetime.fromtimestamp(steady() + timeout, UTC))
    asks = {REPLY_TO: reply_to, CORRELATION_ID: correlation_id, DEADLINE: deadline}
    return message.replace(headers={**message.headers, **asks})


def answer_to(request: Message, result: Any) -> Message:
    """The reply that carries what a handler returned: JSON, but for text, bytes, Protobuf and whole messages.

    Raises TypeError, ValueError or RecursionError for what cannot be encoded.
    """
    headers: dict[str, str] = {}
    if result is None:
        value = b""
    elif isinstance(result, Message):
        value, headers = result.value, _of_a_reply(result)
    elif isinstance(result, bytes | bytearray | memoryview):
        value, headers[CONTENT_TYPE] = bytes(result), "application/octet-stream"
    elif isinstance(result, str):
        value, headers[CONTENT_TYPE] = result.encode(), "text/plain; charset=utf-8"
    elif hasattr(result, "SerializeToString"):
        value, headers[CONTENT_TYPE] = result.SerializeToString(), "application/protobuf"
    else:
        value, headers[CONTENT_TYPE] = _json.encode(result), "application/json"
    headers[CORRELATION_ID] = request.headers[CORRELATION_ID]
    return Message(request.headers[REPLY_TO], value, request.key, headers)


def failure_of(request: Message, error: BaseException) -> Message:
    """The reply that says what the handler failed with: its type and text, no traceback and no secret."""
    said = masked(text_of(error)[: ERROR_BYTES + BEYOND])
    text = said.encode("utf-8", "replace")[:ERROR_BYTES].decode("utf-8", "ignore")
    headers = {
        CORRELATION_ID: request.headers[CORRELATION_ID],
        ERROR_TYPE: qualified_name(error),
        ERROR: text,
    }
    return Message(request.headers[REPLY_TO], b"", request.key, headers)


def _of_a_reply(result: Message) -> dict[str, str]:
    """The headers of a message that was returned, without those that would make it another thing."""
    ours = OF_A_REQUEST | {ERROR_TYPE, ERROR}
    return {
        name: text
        for name, text in result.headers.items()
        if name not in ours and not name.startswith(RESERVED_PREFIX)
    }
