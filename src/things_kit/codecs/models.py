"""Pydantic, wherever in a payload's type it is; nothing here imports it before somebody else has."""

import contextlib
import dataclasses
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Final, Literal

import msgspec

from things_kit.codecs.known import check_known

_CHECKS: Final = ("pydantic", "annotated_types")
"""Packages whose constraints in an `Annotated` only pydantic checks."""


def is_model(kind: Any) -> bool:
    """Whether a type is a pydantic model."""
    return isinstance(kind, type) and hasattr(kind, "model_validate_json")


def has_pydantic(kind: Any) -> bool:
    """Whether a type is pydantic's, or there is one in it, or a constraint that only pydantic checks."""
    return "pydantic" in sys.modules and any(map(_is_pydantics, _parts(kind, set())))


def model_decoder(kind: Any) -> Callable[[bytes], Any]:
    """A function from JSON to such a type. Raises TypeError for one that cannot be decoded."""
    decode: Callable[[bytes], Any]
    if is_model(kind):
        decode = kind.model_validate_json
    elif (adapter := _adapter(kind)) is not None:
        decode = adapter.validate_json
    else:
        decode = msgspec.json.Decoder(kind, dec_hook=_model_of_json).decode
    return decode


def model_encoder(kind: Any) -> Callable[[Any], bytes]:
    """A function to JSON from such a type; fields have the names by which they are read."""
    if is_model(kind):
        return lambda value: bytes(value.model_dump_json(by_alias=True), "utf-8")
    if (adapter := _adapter(kind)) is None:
        return msgspec.json.Encoder(enc_hook=dumped_for_json).encode
    return lambda value: bytes(adapter.dump_json(value, by_alias=True, warnings="none"))


def dumped(value: Any) -> Any:
    """A model as plain values, for msgspec, and what is in one and pydantic alone knows. Raises TypeError for what is neither."""
    if is_model(type(value)):
        return value.model_dump(by_alias=True)
    if "pydantic" in sys.modules:
        from pydantic_core import to_jsonable_python  # noqa: PLC0415 - it is there if a model is

        with contextlib.suppress(ValueError):
            return to_jsonable_python(value)
    raise TypeError(f"a {type(value).__qualname__} cannot be encoded")


def dumped_for_json(value: Any) -> Any:
    """The same, as JSON has them."""
    if not is_model(type(value)):
        raise TypeError(f"a {type(value).__qualname__} cannot be encoded")
    return value.model_dump(mode="json", by_alias=True)


def converter(kind: Any) -> Callable[[Any], Any]:
    """A function to a type from plain values, as a codec reads them without one: keys may be the text that JSON makes of them."""
    if not has_pydantic(kind):
        # With str_keys it takes almost twice as long
        return partial(msgspec.convert, type=kind, **({"str_keys": True} if _has_other_keys(kind) else {}))
    if not is_model(kind) and (adapter := _adapter(kind)) is None:
        return lambda plain: msgspec.convert(plain, kind, str_keys=True, dec_hook=_model)
    return (
        _model_validator(kind)
        if is_model(kind)
        else _validator(adapter.validate_python, adapter.validate_json)
    )


def _model_validator(kind: Any) -> Callable[[Any], Any]:
    return _validator(kind.model_validate, kind.model_validate_json)


def _validator(of_python: Callable[[Any], Any], of_json: Callable[[bytes], Any]) -> Callable[[Any], Any]:
    """Plain values are such as JSON has, but that pydantic does not know: a strict model takes text for a UUID of JSON alone."""
    from pydantic_core import to_json  # noqa: PLC0415 - it is there if a model is

    def as_json(plain: Any) -> bytes | None:
        with contextlib.suppress(ValueError):
            return to_json(plain)
        return None  # there are bytes in it that are no text

    def validate(plain: Any) -> Any:
        try:
            return of_python(plain)
        except ValueError:
            if (text := as_json(plain)) is None:
                raise
        return of_json(text)

    return validate


def model_decoder_of_message_pack(kind: Any) -> Callable[[bytes], Any]:
    """The same from MessagePack."""
    adapter = _adapter(kind)
    if adapter is None:
        return msgspec.msgpack.Decoder(kind, dec_hook=_model).decode
    validate = _validator(adapter.validate_python, adapter.validate_json)
    return lambda value: validate(msgspec.msgpack.decode(value))


def _adapter(kind: Any) -> Any:
    """Pydantic's adapter of a type; None where msgspec serves, as pydantic's part in it are models alone.

    Pydantic refuses Structs, and the standard library's TypedDict before Python 3.12. Raises TypeError if neither serves.
    """
    from pydantic import TypeAdapter  # noqa: PLC0415 - an extra; it is there if a type of its is
    from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError  # noqa: PLC0415

    try:
        return TypeAdapter(kind)
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        if not all(is_model(part) for part in _parts(kind, set()) if _is_pydantics(part)):
            raise TypeError(f"pydantic cannot check all of it: {str(error).splitlines()[0]}") from error
        check_known(kind, is_model)
        return None


def _model_of_json(kind: Any, value: Any) -> Any:
    return kind.model_validate_json(msgspec.json.encode(value))


def _model(kind: Any, value: Any) -> Any:
    return _model_validator(kind)(value)


def _is_pydantics(part: Any) -> bool:
    return (
        is_model(part)
        or hasattr(part, "__is_pydantic_dataclass__")
        or hasattr(part, "__pydantic_config__")
        or type(part).__module__.partition(".")[0] in _CHECKS
    )


def _has_other_keys(kind: Any) -> bool:
    """Whether there is a mapping in it whose keys are no text."""
    for part in _parts(kind, set()):
        origin, arguments = typing.get_origin(part), typing.get_args(part)
        if isinstance(origin, type) and issubclass(origin, Mapping) and arguments[0] is not str:
            return True
    return False


def _parts(kind: Any, seen: set[int]) -> Iterator[Any]:
    """The type, all that are named in it, and what an `Annotated` says of them."""
    if id(kind) in seen or typing.get_origin(kind) is Literal:
        return
    seen.add(id(kind))
    yield kind
    if typing.get_origin(kind) is Annotated:
        yield from kind.__metadata__
    inner = [*typing.get_args(kind), typing.get_origin(kind), *_fields(kind)]
    inner += [getattr(kind, name, None) for name in ("__value__", "__supertype__", "__origin__")]
    for part in inner:
        if part is not None:
            yield from _parts(part, seen)


def _fields(kind: Any) -> list[Any]:
    """The types of the fields of a dataclass, TypedDict, NamedTuple or Struct."""
    if not isinstance(kind, type) or not (
        dataclasses.is_dataclass(kind)
        or typing.is_typeddict(kind)
        or issubclass(kind, msgspec.Struct)
        or hasattr(kind, "_field_defaults")
    ):
        return []
    try:
        return list(typing.get_type_hints(kind, include_extras=True).values())
    except (NameError, TypeError):  # whoever decodes it says what is wrong
        return []
