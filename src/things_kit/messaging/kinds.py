"""The types of a topic's payloads: which can be, which can be told apart, and what takes them."""

import types
import typing
from collections import abc
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from things_kit.messaging.errors import ConfigError

_TYPE_HEADER: Final = "type"
_UNIONS: Final = {types.UnionType, typing.Union}


def checked_kinds(topic: str, kind: Any, by: str | None) -> tuple[dict[str | None, Any], str | None]:
    """The types by the header's value, None where there is one, and the header.

    Raises:
        ConfigError: They cannot be told apart, or there are none.
    """
    if not isinstance(topic, str) or not topic:
        raise ConfigError(f"a topic must have a name; it is {topic!r}")
    if not isinstance(kind, Mapping):
        if by is not None:
            raise ConfigError(
                f"the topic {topic!r} has by={by!r}, which needs a mapping from its values to types"
            )
        if kind is None or isinstance(kind, str | bytes | int | float | TypeVar):
            raise ConfigError(f"the topic {topic!r} needs the type of its payloads; {kind!r} is none")
        return {None: kind}, None
    header = _TYPE_HEADER if by is None else by
    if not isinstance(header, str) or not header:
        raise ConfigError(f"the topic {topic!r}: by= is a header's name, not {by!r}")
    if not kind:
        raise ConfigError(f"the topic {topic!r} has no types")
    seen: dict[Any, str] = {}
    for value, each in kind.items():
        if not isinstance(value, str):
            raise ConfigError(f"the topic {topic!r}: the header {header!r} is text, which {value!r} is not")
        if not _is_told_apart(each):
            raise ConfigError(
                f"the topic {topic!r} maps {value!r} to {each!r}, which cannot be told apart at run time: use a class"
            )
        if each in seen:
            raise ConfigError(
                f"the topic {topic!r} maps both {seen[each]!r} and {value!r} to {each.__qualname__}"
            )
        seen[each] = value
    return dict(kind), header


def _is_told_apart(kind: Any) -> bool:
    """Whether payloads say by their class that they are of this type: `Any` is a class too, of which nothing is."""
    is_class = isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and kind is not Any
    return is_class and not typing.is_typeddict(kind)


def is_raw(kinds: Mapping[str | None, Any]) -> bool:
    """Whether payloads are the bytes, or the text, themselves."""
    return kinds.get(None) in {bytes, str} if None in kinds and _hashable(kinds[None]) else False


def outer_classes(kinds: Mapping[str | None, Any]) -> tuple[type, ...] | None:
    """The classes that payloads are instances of; None where nothing can be said."""
    classes: list[type] = []
    for kind in kinds.values():
        found = _outer(kind)
        if found is None:
            return None
        classes += found
    return tuple(classes)


def _outer(kind: Any) -> list[type] | None:
    kind = unwrapped(kind)
    if kind is None:
        return [type(None)]
    origin = typing.get_origin(kind)
    if origin in _UNIONS:
        found = [_outer(each) for each in typing.get_args(kind)]
        return None if None in found else [each for classes in found for each in classes or ()]
    if origin is Literal:
        return list({type(value) for value in typing.get_args(kind)})
    kind = origin or kind
    if not isinstance(kind, type) or kind in {object, Any}:
        return None
    if typing.is_typeddict(kind):
        return [dict]
    return [int, float] if kind is float else [kind]


def unwrapped(kind: Any) -> Any:
    """A type without what `Annotated`, NewType and `type` statements put around it."""
    while True:
        if typing.get_origin(kind) is Annotated:
            kind = kind.__origin__
        elif hasattr(kind, "__supertype__"):
            kind = kind.__supertype__
        elif hasattr(kind, "__value__") and not isinstance(kind, TypeVar | type):
            kind = kind.__value__
        else:
            return kind


def takes(wide: Any, narrow: Any) -> bool:
    """Whether what is annotated with `wide` can be given every value of `narrow`."""
    wide, narrow = unwrapped(wide), unwrapped(narrow)
    if wide is Any or wide is object or wide == narrow:
        return True
    if typing.get_origin(narrow) in _UNIONS:
        return all(takes(wide, each) for each in typing.get_args(narrow))
    if typing.get_origin(wide) in _UNIONS:
        return any(takes(each, narrow) for each in typing.get_args(wide))
    if isinstance(wide, TypeVar):
        return wide.__bound__ is None or takes(wide.__bound__, narrow)
    return _class_takes(wide, narrow)


def _class_takes(wide: Any, narrow: Any) -> bool:
    outer, inner = typing.get_origin(wide) or wide, typing.get_origin(narrow) or narrow
    if not (isinstance(outer, type) and isinstance(inner, type)):
        return False
    if typing.is_typeddict(outer) or typing.is_typeddict(inner):
        return outer in {dict, abc.Mapping, abc.MutableMapping} and not typing.get_args(wide)
    try:
        related = issubclass(inner, outer)
    except TypeError:  # a protocol that says nothing at run time
        return False
    wanted = typing.get_args(wide)
    return related and (not wanted or _all_taken(wanted, typing.get_args(narrow)))


def _all_taken(wanted: tuple[Any, ...], given: tuple[Any, ...]) -> bool:
    return len(wanted) == len(given) and all(takes(*pair) for pair in zip(wanted, given, strict=True))


def _hashable(kind: Any) -> bool:
    try:
        hash(kind)
    except TypeError:
        return False
    return True
