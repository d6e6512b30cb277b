"""Whether msgspec can decode to a type: it takes any class for known, and then decodes nothing to it."""

from collections.abc import Callable
from typing import Any

import msgspec.inspect


def check_known(kind: Any, but_for: Callable[[type], bool] = lambda _: False) -> None:
    """Raise TypeError if there is a class in a type that nothing is decoded to, `but_for` some.

    What a message need not have, such as a field with a default, is left alone.
    """
    _check(msgspec.inspect.type_info(kind), but_for, set())


def _check(info: msgspec.inspect.Type, but_for: Callable[[type], bool], seen: set[int]) -> None:
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.CustomType) and not but_for(info.cls):
        raise TypeError(f"{info.cls!r} is no Struct, dataclass, TypedDict, pydantic model or built-in type")
    for name in info.__struct_fields__:
        part = getattr(info, name)
        for each in part if isinstance(part, tuple) else (part,):
            if isinstance(each, msgspec.inspect.Field) and each.required:
                _check(each.type, but_for, seen)
            elif isinstance(each, msgspec.inspect.Type):
                _check(each, but_for, seen)
