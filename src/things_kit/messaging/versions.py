"""Versions of a topic's contract: how a message of an older one becomes one of today's."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from things_kit.messaging.errors import ConfigError, DecodeError
from things_kit.messaging.message import Message
from things_kit.messaging.names import SCHEMA_VERSION, in_any_case

Upcaster: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""From the plain values of one version to those of the next."""

Upcasters: TypeAlias = Mapping[int, Upcaster]
"""By the version that each takes."""


def check_versions(
    topic: str, kinds: Mapping[str | None, Any], version: int | None, upcast: Mapping[Any, Any]
) -> Mapping[str | None, Upcasters]:
    """The upcasters by the type's value in the header, None where there is one type.

    Raises:
        ConfigError: They are not those from version 1 to the one before this.
    """
    if version is None:
        if upcast:
            raise ConfigError(f"the topic {topic!r} has upcast= without version=")
        return {}
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ConfigError(f"the version of the topic {topic!r} is a whole number from 1; it is {version!r}")
    if None in kinds:
        _check(f"the topic {topic!r}", version, upcast)
        return {None: dict(upcast)}
    for value, upcasters in upcast.items():
        if value not in kinds:
            raise ConfigError(f"the topic {topic!r} has no type {value!r}, for which it has upcasters")
        _check(f"the topic {topic!r}: {value!r}", version, upcasters)
    return {value: dict(upcasters) for value, upcasters in upcast.items()}


def _check(what: str, version: int, upcast: Any) -> None:
    if not isinstance(upcast, Mapping):
        raise ConfigError(f"{what}: upcast= maps a version to a function, not {upcast!r}")
    for old, function in upcast.items():
        if isinstance(old, bool) or not isinstance(old, int) or not 1 <= old < version:
            raise ConfigError(f"{what}: upcast= has {old!r}, which is no version from 1 to {version - 1}")
        if not callable(function):
            raise ConfigError(f"{what}: the upcaster from version {old} is no function but {function!r}")
    missing = sorted(set(range(1, version)) - upcast.keys())
    if missing:
        raise ConfigError(
            f"{what} is of version {version}, and has no upcaster from {', '.join(map(str, missing))}"
        )


def written_version(message: Message, current: int, *, accept_newer: bool) -> int:
    """By which version a message was written. Raises DecodeError where that is no version, or a newer one."""
    text = in_any_case(message.headers, SCHEMA_VERSION)
    if text is None:
        return 1
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
        raise DecodeError(f"the header {SCHEMA_VERSION!r} is no version but {text!r}")
    version = int(text)
    if version > current and not accept_newer:
        raise DecodeError(
            f"the message is of version {version}, newer than this program's {current}; accept_newer=True takes it"
        )
    return version


def upcasted(plain: Any, version: int, upcasters: Upcasters) -> Any:
    """The plain values of a message as those of the current version. Raises DecodeError where an upcaster raises."""
    for old in sorted(upcasters):
        if old < version:
            continue
        try:
            plain = upcasters[old](plain)
        except Exception as error:
            raise DecodeError(f"the upcaster from version {old} failed: {error!r}") from error
    return plain
