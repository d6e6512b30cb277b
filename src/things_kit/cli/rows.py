"""Messages as JSON rows: what `tail --json` prints and `publish` takes back, without loss."""

import base64
import binascii
from datetime import datetime
from typing import Any

import msgspec

from things_kit.cli.decoded import AS_IT_IS, Decoded
from things_kit.messaging.message import Message

Bytes = str | dict[str, str]
"""Bytes in a row: text where they are UTF-8, else `{"base64": "..."}`."""


def row(message: Message, decoded: Decoded = AS_IT_IS) -> dict[str, Any]:
    """A message as a row: all its fields, under their own names, and what its value says, or why nobody can tell."""
    told: dict[str, Any] = {}
    if decoded.json is not None:
        told["decoded"] = msgspec.json.decode(decoded.json)
    if decoded.problem is not None:
        told["not_decoded"] = decoded.problem
    return {
        "topic": message.topic,
        "value": bytes_in_row(message.value),
        "key": None if message.key is None else bytes_in_row(message.key),
        "headers": dict(message.headers),
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": None if message.timestamp is None else rfc3339(message.timestamp),
        "id": message.id,
        "attempt": message.attempt,
        **told,
    }


def rfc3339(time: datetime) -> str:
    """A time as `2026-01-31T12:00:00.123456Z`."""
    return time.isoformat().replace("+00:00", "Z")


def bytes_in_row(data: bytes) -> Bytes:
    """Bytes as a row holds them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def bytes_from_row(json: bytes) -> bytes:
    """Bytes from a row's JSON: a string is its UTF-8, `{"base64": "..."}` what it stands for, all else its JSON text.

    Raises:
        ValueError: What stands under `base64` is none.
    """
    data = msgspec.json.decode(json)
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, dict) and data.keys() == {"base64"} and isinstance(data["base64"], str):
        try:
            return base64.b64decode(data["base64"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"base64: {error}") from error
    return json
