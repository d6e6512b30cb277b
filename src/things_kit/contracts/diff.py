"""What a new version of a document breaks: for new consumers that read old messages, or old ones that read new."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec

from things_kit.contracts import avro, protobuf
from things_kit.contracts.compatibility import DEEPEST, Broken, Reader, resolve
from things_kit.contracts.shapes import Document, Message, check
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
    found = _on_the_wire(writes[1], reads[1])
    if not found and protobuf.KEY not in reads[1]:  # whose names are not on the wire
        found = Reader(writes[0], reads[0]).payload(writes[1].get("payload", {}), reads[1].get("payload", {}))
    for broken in found:
        yield Finding(topic, name, broken.path.lstrip("."), direction, broken.reason)


_ALL_READ: Final = frozenset({"application/json", "application/msgpack"})
"""Content types that every consumer of a typed payload reads, as messages say which theirs is."""


def _on_the_wire(writes: Mapping[str, Any], reads: Mapping[str, Any]) -> list[Broken]:
    """What the reader's codec cannot read of the bytes, whatever is in them."""
    written, read = (str(each.get("contentType", "application/json")) for each in (writes, reads))
    if written != read and not {written, read} <= _ALL_READ:
        return [Broken("", f"it is written as {written}, and read as {read}")]
    for name, judge in _JUDGES.items():
        if name in writes and name in reads:
            return _judged(judge, writes[name], reads[name], read)
        if name in writes or name in reads or read.endswith(name.removeprefix("x-")):
            return [Broken("", f"the document has no {name!r}, so that the bytes cannot be judged")]
    return []


_Judge: TypeAlias = Callable[[Any, Any, str], list[Broken]]
_JUDGES: Final[Mapping[str, _Judge]] = {
    avro.KEY: lambda writes, reads, read: avro.avro_broken(writes, reads, resolved="confluent" in read),
    protobuf.KEY: lambda writes, reads, _: protobuf.protobuf_broken(writes, reads),
}
"""By what a document calls the schema of the bytes."""


def _judged(judge: _Judge, writes: Any, reads: Any, read: str) -> list[Broken]:
    try:
        return judge(writes, reads, read)
    except RecursionError:
        raise ConfigError("the schemas are nested too deeply to be compared") from None


def _channels(document: Any) -> dict[str, dict[str, Any]]:
    """By topic, its messages by their names. Raises ConfigError for what is no such document."""
    if not isinstance(document, Mapping) or not str(document.get("asyncapi", "")).startswith("3."):
        raise ConfigError("it is no AsyncAPI 3 document")
    check(document, Document, "it is no AsyncAPI document")
    found: dict[str, dict[str, Any]] = {}
    for identity, channel in (document.get("channels") or {}).items():
        messages = found.setdefault(channel.get("address") or identity, {})
        for key, named in (channel.get("messages") or {}).items():
            message = _resolved(document, named)
            check(message, Message, f"the message {key!r} of {identity!r} is none")
            messages[message.get("name") or key] = message
    return found


def _resolved(document: Mapping[str, Any], message: Any) -> Any:
    for _ in range(DEEPEST):
        reference = message.get("$ref") if isinstance(message, Mapping) else None
        if reference is None:
            return message
        message = resolve(document, str(reference))
    raise ConfigError(f"the reference {reference!r} leads to itself")
