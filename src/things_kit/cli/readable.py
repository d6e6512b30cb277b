"""Messages for people: nothing in them can steer the terminal, and binary data is told from text."""

from contextlib import suppress
from datetime import datetime
from typing import Final

import msgspec
from rich.highlighter import JSONHighlighter
from rich.text import Text

from things_kit.cli.decoded import AS_IT_IS, Decoded
from things_kit.cli.printing import safe
from things_kit.messaging.message import Message

JSON_COLOURS: Final = JSONHighlighter()


def line(message: Message, longest: int | None = None, decoded: Decoded = AS_IT_IS) -> Text:
    """A message as one line: when, key, headers, value."""
    text = Text()
    if message.timestamp is not None:
        text.append(clock(message.timestamp), "dim").append("  ")
    if message.key is not None:
        text.append(readable(message.key), "bold cyan").append("  ")
    for name, value in message.headers.items():
        text.append(safe(name), "green").append("=", "dim").append(safe(value), "green").append("  ")
    if message.attempt > 1:
        text.append(f"attempt {message.attempt}", "yellow").append("  ")
    text.append_text(value_text(message.value if decoded.json is None else decoded.json, longest))
    return text if decoded.problem is None else text.append(f"  {not_decoded(decoded.problem)}", "yellow")


def not_decoded(problem: str) -> str:
    """Why a value is shown as it is."""
    return f"(not decoded: {safe(problem)})"


def value_text(value: bytes, longest: int | None = None) -> Text:
    """A value, with the colours of JSON where it looks like it."""
    text = Text(readable(value, longest))
    if value[:1] in {b"{", b"["}:
        JSON_COLOURS.highlight(text)
    return text


def value_page(value: bytes) -> Text:
    """A value on lines of its own: JSON indented, other text line by line."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return value_text(value)
    is_json = False
    with suppress(msgspec.DecodeError, RecursionError):
        msgspec.json.decode(value)
        text, is_json = msgspec.json.format(text, indent=2), True
    page = Text("\n").join(Text(safe(line)) for line in text.split("\n"))
    if is_json:
        JSON_COLOURS.highlight(page)
    return page


def readable(data: bytes, longest: int | None = None) -> str:
    """Bytes for people: text where they are UTF-8, else their number and hexadecimal digits."""
    try:
        text = safe(data.decode())
    except UnicodeDecodeError:
        text = f"<{len(data)} bytes: {data.hex(' ')}>"
    if longest is not None and len(text) > longest:
        return f"{text[:longest]}… ({len(data)} bytes; --json shows all)"
    return text


def clock(time: datetime) -> str:
    """A time in the zone of who reads it: without the date where that is today's."""
    try:
        here = time.astimezone()
    except (OverflowError, OSError, ValueError):
        return time.isoformat(" ")  # too far away for the system's zones
    today = here.date() == datetime.now().astimezone().date()
    return here.strftime("%H:%M:%S." if today else "%Y-%m-%d %H:%M:%S.") + f"{here.microsecond // 1000:03}"
