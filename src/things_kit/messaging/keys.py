"""From a payload to its message's key."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Final, TypeAlias
from uuid import UUID

from things_kit.messaging.errors import ConfigError
from things_kit.messaging.kinds import unwrapped

Key: TypeAlias = str | bytes | int | UUID | None
"""What can be a key: text as UTF-8, bytes as they are, numbers and UUIDs as their text, None for no key."""

_KEYS: Final = (str, bytes, int, UUID, type(None))


def key_bytes(key: object) -> bytes | None:
    """The bytes of a key. Raises TypeError for what can be none."""
    if key is None:
        return None
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, bytes):
        return key
    if isinstance(key, int | UUID) and not isinstance(key, bool):
        return b"%d" % key if isinstance(key, int) else str(key).encode()
    raise TypeError(f"a key is a str, bytes, int, UUID or None, not {type(key).__qualname__}")


class Keys:
    """What the keys of a topic's messages are made of, and how.

    Args:
        get: The function from a payload to what its key is made of.
        lacking: What is said of a payload that has not what `get` looks for; None: its errors are the user's.
    """

    __slots__ = ("_get", "_lacking")

    def __init__(self, get: Callable[[Any], Any], lacking: str | None) -> None:
        self._get = get
        self._lacking = lacking

    def of(self, payload: object) -> bytes | None:
        """The key of one. Raises TypeError for what can be none."""
        try:
            found = self._get(payload)
        except (AttributeError, KeyError) as error:
            if self._lacking is None:
                raise
            raise TypeError(self._lacking) from error
        return key_bytes(found)

    def of_all(self, payloads: Sequence[object]) -> Iterable[bytes | None]:
        """The keys of many: text, which most are, is encoded without a call of ours for each."""
        try:
            found = [*map(self._get, payloads)]
        except (AttributeError, KeyError):
            if self._lacking is None:
                raise
            return map(self.of, payloads)
        return map(str.encode if {*map(type, found)} == {str} else key_bytes, found)


def keys_of(key: str | Callable[[Any], Any], kinds: Mapping[str | None, Any], topic: str) -> Keys:
    """What the keys of a topic of these types are made of.

    Raises:
        ConfigError: A type lacks the attribute, or what it is there can be no key, as far as that is known.
    """
    if callable(key):
        _check(f"what the key function of the topic {topic!r} returns", _returned(key))
        return Keys(key, None)
    if not isinstance(key, str):
        raise ConfigError(
            f"the key of the topic {topic!r} is an attribute's name or a function of the payload, not {key!r}"
        )
    for kind in kinds.values():
        found = _attribute(kind, key)
        if found is _MISSING:
            raise ConfigError(f"the topic {topic!r} has the key {key!r}, which {_name(kind)} has not")
        _check(f"{key!r} of {_name(kind)}, the key of the topic {topic!r},", found)
    return Keys(
        _looking_up(key, kinds), f"a payload has no {key!r}, which the key of the topic {topic!r} is made of"
    )


def _looking_up(key: str, kinds: Mapping[str | None, Any]) -> Callable[[Any], Any]:
    if all(map(_is_mapping, kinds.values())):
        return itemgetter(key)
    if key.isidentifier() and all(map(_has_attributes, kinds.values())):
        return attrgetter(key)
    return lambda payload: payload[key] if isinstance(payload, Mapping) else getattr(payload, key)


def _has_attributes(kind: Any) -> bool:
    """Whether all its values have attributes, and none is a mapping."""
    kind = unwrapped(kind)
    kind = typing.get_origin(kind) or kind
    return isinstance(kind, type) and kind not in {object, Any, types.UnionType} and not _is_mapping(kind)


_MISSING: Final = object()
_UNKNOWN: Final = object()


def _attribute(kind: Any, name: str) -> Any:
    """The type of an attribute; _MISSING where the type has none of that name, _UNKNOWN where nobody can say."""
    kind = unwrapped(kind)
    if typing.get_origin(kind) in {types.UnionType, typing.Union}:
        found = [_attribute(each, name) for each in typing.get_args(kind)]
        return _MISSING if _MISSING in found else found[0] if len(set(map(id, found))) == 1 else _UNKNOWN
    kind = typing.get_origin(kind) or kind
    if not isinstance(kind, type):
        return _UNKNOWN
    if typing.is_typeddict(kind):
        return _hints(kind).get(name, _MISSING)
    return _UNKNOWN if kind in {object, Any} or issubclass(kind, Mapping) else _attribute_of_class(kind, name)


def _attribute_of_class(kind: type, name: str) -> Any:
    if not _has(kind, name):
        return _MISSING
    found = _hints(kind).get(name, _UNKNOWN)
    if found is _UNKNOWN and isinstance(getattr(kind, name, None), property):
        return _returned(getattr(kind, name).fget)
    return found


def _has(kind: type, name: str) -> bool:
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    fields |= {*getattr(kind, "__struct_fields__", ()), *getattr(kind, "model_fields", ())}
    descriptor = getattr(kind, "DESCRIPTOR", None)  # of Protobuf's
    fields |= set(getattr(descriptor, "fields_by_name", ()))
    return name in fields or hasattr(kind, name) or name in _hints(kind)


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except (NameError, TypeError, AttributeError):
        return {}


def _returned(function: Any) -> Any:
    try:
        return typing.get_type_hints(inspect.unwrap(function)).get("return", _UNKNOWN)
    except (NameError, TypeError, AttributeError):
        return _UNKNOWN


def _check(what: str, kind: Any) -> None:
    """Raise ConfigError for a type of which no value can be a key."""
    if kind is _UNKNOWN:
        return
    kind = unwrapped(kind)
    if typing.get_origin(kind) in {types.UnionType, typing.Union}:
        for each in typing.get_args(kind):
            _check(what, each)
        return
    kind = typing.get_origin(kind) or kind
    if not isinstance(kind, type) or kind in {object, Any}:
        return  # a type variable, Any, Literal: who knows
    if kind is bool or not issubclass(kind, _KEYS):
        raise ConfigError(f"{what} is {_name(kind)}; a key is a str, bytes, int, UUID or None")


def _is_mapping(kind: Any) -> bool:
    kind = unwrapped(kind)
    kind = typing.get_origin(kind) or kind
    return isinstance(kind, type) and (issubclass(kind, Mapping) or typing.is_typeddict(kind))


def _name(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) else str(kind)
