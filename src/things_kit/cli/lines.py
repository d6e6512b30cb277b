"""Lines of text as messages: what `publish` reads."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import jmespath
import msgspec
from jmespath.exceptions import JMESPathError

from things_kit.cli.rows import bytes_from_row
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message

FIELDS: Final = frozenset(Message.__struct_fields__)
TEXT: Final = msgspec.json.Decoder(str)
FIELDS_OF_LINE: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class LineError(ValueError):
    """A line that is no message, and why."""


class Path:
    """Where in a line's JSON something is found: `.type`, `.payload.repository.full_name`, or any JMESPath.

    It must be there, and not null, unless the path ends in `?`.

    Raises:
        ConfigError: It is not a path.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._optional = text.endswith("?")
        try:
            self._compiled = jmespath.compile(text.removesuffix("?").removeprefix(".") or "@")
        except JMESPathError as error:
            raise ConfigError(f"{text!r} is not a path such as .type or .payload.id") from error

    def find(self, data: Any) -> bytes | None:
        """What is there: a string's UTF-8, of anything else its JSON; None where it is missing or null, and may be.

        Raises:
            LineError: The path cannot be followed in this data, or nothing is there.
        """
        try:
            found = self._compiled.search(data)
        except JMESPathError as error:
            raise LineError(f"{self.text}: {error}") from error
        if found is None:
            if self._optional:
                return None
            raise LineError(f"has nothing at {self.text}; write {self.text}? where it may be missing")
        try:
            return found.encode() if isinstance(found, str) else msgspec.json.encode(found)
        except TypeError as error:  # an expression, as in `&name`, is no data
            raise LineError(f"{self.text}: finds no data") from error


class Template:
    """How lines become messages of a topic.

    Args:
        topic: Where they go.
        raw: A line is a value, whatever it holds.
        key: The path of the key.
        headers: NAME=PATH or NAME=TEXT, each.

    Raises:
        ConfigError: A path or a header is not understood.
    """

    def __init__(
        self, topic: str, *, raw: bool = False, key: str | None = None, headers: list[str] | None = None
    ) -> None:
        self._topic = topic
        self._raw = raw
        self._key = None if key is None else Path(key)
        self._headers = dict(_header(text) for text in headers or [])
        self._looks = self._key is not None or any(
            isinstance(source, Path) for source in self._headers.values()
        )

    def message(self, line: bytes) -> Message:
        """The message that a line is. Raises LineError if it is none."""
        if self._raw:
            return self._completed(Message(self._topic, line), _json(line, None) if self._looks else None)
        data = _json(line, ...)
        if data is ...:
            raise LineError("is no JSON; --raw takes every line as a value")
        # An object with a field that no message has is somebody's own data, which also has a `value`.
        if isinstance(data, dict) and "value" in data and data.keys() <= FIELDS:
            return self._completed(_message(self._topic, line), data)
        return self._completed(Message(self._topic, line.strip()), data)

    def _completed(self, message: Message, data: Any) -> Message:
        if self._key is not None:
            message = message.replace(key=self._key.find(data))
        if self._headers:
            message = message.replace(headers={**message.headers, **self._found(data)})
        return message

    def _found(self, data: Any) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for name, source in self._headers.items():
            text = source.find(data) if isinstance(source, Path) else source.encode()
            if text is not None:
                found[name] = text.decode()
        return found


def _header(text: str) -> tuple[str, Path | str]:
    name, equals, source = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--header takes NAME=PATH, such as type=.type, or NAME=TEXT; it is {text!r}")
    return name, Path(source) if source.startswith(".") else source


def _json(line: bytes, otherwise: Any) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return otherwise


def _message(topic: str, line: bytes) -> Message:
    fields = FIELDS_OF_LINE.decode(line)
    try:
        key = fields.get("key", b"null")
        return Message(
            topic,
            _bytes("value", fields["value"]),
            key=None if bytes(key) == b"null" else _bytes("key", key),
            headers=_headers_of(fields.get("headers")),
            timestamp=_timestamp(fields.get("timestamp")),
            id=_id(fields.get("id")),
        )
    except msgspec.ValidationError as error:
        raise LineError(str(error)) from error


def _bytes(name: str, json: msgspec.Raw | bytes) -> bytes:
    try:
        return bytes_from_row(bytes(json))
    except ValueError as error:
        raise LineError(f"{name}: {error}") from error


def _headers_of(json: msgspec.Raw | None) -> dict[str, str]:
    if json is None or bytes(json) == b"null":
        return {}
    try:
        raw = FIELDS_OF_LINE.decode(json)
    except msgspec.ValidationError as error:
        raise LineError("headers: expected an object") from error
    texts = {name: bytes(text) for name, text in raw.items() if bytes(text) != b"null"}
    return {
        name: TEXT.decode(text) if text.startswith(b'"') else text.decode() for name, text in texts.items()
    }


def _timestamp(json: msgspec.Raw | None) -> datetime | None:
    if json is None or bytes(json) == b"null":
        return None
    try:
        time = datetime.fromisoformat(TEXT.decode(json))
    except (msgspec.ValidationError, ValueError) as error:
        raise LineError("timestamp: expected a time such as 2026-01-31T12:00:00Z") from error
    if time.tzinfo is None:
        raise LineError("timestamp: expected a time with its offset, such as 2026-01-31T12:00:00Z")
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise LineError("timestamp: out of range") from error


def _id(json: msgspec.Raw | None) -> str | None:
    if json is None or bytes(json) == b"null":
        return None
    try:
        return TEXT.decode(json)
    except msgspec.ValidationError as error:
        raise LineError("id: expected a string") from error
