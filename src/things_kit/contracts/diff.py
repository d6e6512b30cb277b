"""What a new version of a document breaks: for new consumers that read old messages, or old ones that read new."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from things_kit.contracts.compatibility import Reader, resolve
from things_kit.messaging.errors import ConfigError


class Finding(msgspec.Struct, frozen=True):
    """One thing that changed.

    Attributes:
        topic: The topic's name.
        message: The message's name; None where the topic as a whole is meant.
        path: Where in the payload.
        direction: "backward": new consumers cannot read old messages; "forward": old consumers cannot read new ones;
            None: it breaks nobody.
        reason: A phrase.
    """

    topic: str
    message: str | None
    path: str
    direction: Literal["backward", "forward"] | None
    reason: str


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Finding]:
    """What changed between two AsyncAPI documents and matters. Raises ConfigError for what is no such document."""
    before, after = _channels(old), _channels(new)
    findings: list[Finding] = []
    for topic in sorted(before.keys() | after.keys()):
        if topic not in after:
            findings.append(Finding(topic, None, "", None, "the channel is removed"))
        elif topic not in before:
            findings.append(Finding(topic, None, "", None, "the channel is added"))
        else:
            findings += _messages(topic, (old, before[topic]), (new, after[topic]))
    return findings


Messages = tuple[Mapping[str, Any], Mapping[str, Any]]


def _messages(topic: str, old: Messages, new: Messages) -> Iterator[Finding]:
    before, after = old[1], new[1]
    if len(before) == len(after) == 1 and not any(
        "x-type-header" in each for each in (*before.values(), *after.values())
    ):
        before = {next(iter(after)): each for each in before.values()}  # its class alone was renamed
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            yield Finding(topic, name, "", "backward", "the type is removed")
        elif name not in before:
            yield Finding(topic, name, "", "forward", "the type is new")
        else:
            yield from _message(topic, name, (old[0], before[name]), (new[0], after[name]))


def _message(
    topic: str, name: str, old: tuple[Mapping[str, Any], Any], new: tuple[Mapping[str, Any], Any]
) -> Iterator[Finding]:
    header = old[1].get("x-type-header"), new[1].get("x-type-header")
    if header[0] != header[1]:
        reason = f"its type is named by {header[1]!r}, no longer by {header[0]!r}"
        yield Finding(topic, name, "", "backward", reason)
        yield Finding(topic, name, "", "forward", reason)
        return
    before, after = old[1].get("x-version"), new[1].get("x-version")
    upcast = after is not None and (before or 1) < after
    if not upcast:
        yield from _broken(topic, name, "backward", old, new)
    if before is not None and after is not None and after > before and not old[1].get("x-accepts-newer"):
        reason = f"it is of version {after}, which consumers of version {before} refuse"
        yield Finding(topic, name, "", "forward", reason)
    else:
        yield from _broken(topic, name, "forward", new, old)


def _broken(
    topic: str,
    name: str,
    direction: Literal["backward", "forward"],
    writes: tuple[Mapping[str, Any], Any],
    reads: tuple[Mapping[str, Any], Any],
) -> Iterator[Finding]:
    reader = Reader(writes[0], reads[0])
    for broken in reader.broken(writes[1].get("payload", {}), reads[1].get("payload", {})):
        yield Finding(topic, name, broken.path.lstrip("."), direction, broken.reason)


def _channels(document: Any) -> dict[str, dict[str, Any]]:
    """By topic, its messages by their names."""
    if not isinstance(document, Mapping) or not str(document.get("asyncapi", "")).startswith("3."):
        raise ConfigError("it is no AsyncAPI 3 document")
    found: dict[str, dict[str, Any]] = {}
    try:
        for identity, channel in (document.get("channels") or {}).items():
            messages = found.setdefault(str(channel.get("address") or identity), {})
            for key, message in (channel.get("messages") or {}).items():
                if "$ref" in message:
                    message = resolve(document, message["$ref"])  # noqa: PLW2901 - the same message
                messages[str(message.get("name") or key)] = message
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"it is no AsyncAPI document: {error}") from error
    return found
