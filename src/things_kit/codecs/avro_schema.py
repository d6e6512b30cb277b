"""The Avro schema of a type: Structs, dataclasses, TypedDicts and pydantic models, and what may be in them."""

import enum
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias, Union

import msgspec
from msgspec import inspect as shapes

from things_kit.codecs.docstrings import docstring
from things_kit.codecs.models import has_pydantic, is_model
from things_kit.messaging.kinds import unwrapped

Schema: TypeAlias = str | dict[str, Any] | list[Any]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SIMPLE: Final[Mapping[type, Any]] = {
    shapes.NoneType: "null",
    shapes.BoolType: "boolean",
    shapes.IntType: "long",
    shapes.FloatType: "double",
    shapes.StrType: "string",
    shapes.BytesType: "bytes",
    shapes.ByteArrayType: "bytes",
    shapes.DecimalType: "string",  # whose digits are not bounded by the type
    shapes.TimeDeltaType: "string",
    shapes.DateTimeType: {"type": "long", "logicalType": "timestamp-micros"},
    shapes.DateType: {"type": "int", "logicalType": "date"},
    shapes.TimeType: {"type": "long", "logicalType": "time-micros"},
    shapes.UUIDType: {"type": "string", "logicalType": "uuid"},
}
_ARRAYS: Final = (
    shapes.ListType, shapes.SetType, shapes.FrozenSetType, shapes.VarTupleType, shapes.CollectionType,
)  # fmt: skip
_TEXT_KEYS: Final = (shapes.StrType, shapes.IntType, shapes.UUIDType, shapes.EnumType, shapes.LiteralType)


def avro_schema(kind: Any, namespace: str | None = None, elsewhere: Iterable[Any] = ()) -> Schema:
    """The schema of a type; its name is the class's, `Page_Order` for `Page[Order]`.

    Of types whose schemas are `elsewhere` it has the names alone.

    Raises:
        TypeError: Avro cannot have it.
    """
    return _Schemas(namespace, elsewhere).of(kind, "Value")


class _Schemas:
    """The schemas of one type and all in it: a named one is written out once, and named afterwards."""

    def __init__(self, namespace: str | None, elsewhere: Iterable[Any]) -> None:
        self._namespace = namespace
        self._named: dict[str, Any] = {}
        for kind in elsewhere:
            values = _values_of(kind)
            self._named[_record_name(kind)] = kind if values is None else values

    def of(self, kind: Any, hint: str) -> Schema:
        plain = unwrapped(kind)
        if typing.get_origin(plain) in {Union, types.UnionType}:
            return self._union([self.of(each, hint) for each in typing.get_args(plain)])
        if is_model(plain):
            return self._model(plain)
        if typing.get_origin(plain) is not None and has_pydantic(plain):
            return self._generic(plain, hint)
        return self._shape(shapes.type_info(kind), hint)

    def _generic(self, kind: Any, hint: str) -> Schema:
        """A collection of models, of which msgspec knows nothing."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return {"type": "map", "values": self.of(arguments[1], hint)}
        if isinstance(origin, type) and hasattr(origin, "__struct_fields__"):
            return self._shape(shapes.type_info(kind), hint)
        items = [self.of(each, hint) for each in arguments if each is not ...]
        return {"type": "array", "items": items[0] if len(items) == 1 else self._union(items)}

    def _shape(self, info: shapes.Type, hint: str) -> Schema:
        if isinstance(info, shapes.Metadata):
            return self._shape(info.type, hint)
        if type(info) in _SIMPLE:
            simple: Schema = _SIMPLE[type(info)]
            return simple
        if isinstance(info, shapes.EnumType):
            return self._enum(info.cls.__name__, [member.value for member in info.cls])
        if isinstance(info, shapes.LiteralType):
            return self._enum(hint, list(info.values))
        return self._collection(info, hint)

    def _collection(self, info: shapes.Type, hint: str) -> Schema:
        if isinstance(info, shapes.UnionType):
            return self._union([self._shape(each, hint) for each in info.types])
        if isinstance(info, _ARRAYS):
            return {"type": "array", "items": self._shape(info.item_type, hint)}
        if isinstance(info, shapes.TupleType):
            return {
                "type": "array",
                "items": self._union([self._shape(each, hint) for each in info.item_types]),
            }
        if isinstance(info, shapes.NamedTupleType):
            items = [self._shape(each.type, f"{hint}_{each.name}") for each in info.fields]
            return {"type": "array", "items": self._union(items)}
        if isinstance(info, shapes.StructType | shapes.DataclassType | shapes.TypedDictType):
            return self._record(info)
        return self._map(info, hint)

    def _map(self, info: shapes.Type, hint: str) -> Schema:
        if isinstance(info, shapes.CustomType) and is_model(info.cls):
            return self._model(info.cls)
        if isinstance(info, shapes.DictType):
            key = info.key_type.type if isinstance(info.key_type, shapes.Metadata) else info.key_type
            if not isinstance(key, _TEXT_KEYS):
                raise TypeError("the keys of an Avro map are text")
            return {"type": "map", "values": self._shape(info.value_type, hint)}
        what = (
            info.cls.__qualname__
            if isinstance(info, shapes.CustomType)
            else type(info).__name__.removesuffix("Type")
        )
        raise TypeError(f"Avro has nothing for {what}")

    # --- named types

    def _record(self, info: shapes.StructType | shapes.DataclassType | shapes.TypedDictType) -> Schema:
        name = _record_name(info.cls)
        if (known := self._known(name, info)) is not None:
            return known
        fields: list[dict[str, Any]] = []
        if isinstance(info, shapes.StructType):
            if info.array_like:
                raise TypeError(f"{name} is array_like, and a record has names")
            if info.tag_field is not None:
                tag = self._enum(f"{name}_{_plain_name(info.tag_field)}", [info.tag])
                fields.append({"name": _checked(info.tag_field, name), "type": tag})
        for field in info.fields:
            if isinstance(info, shapes.TypedDictType) and not field.required:
                raise TypeError(f"{field.name!r} of {name} may be missing, and a record has all its fields")
            schema = self._shape(field.type, f"{name}_{_plain_name(field.encode_name)}")
            default = field.default
            if default is msgspec.NODEFAULT and field.default_factory in {list, dict, set, frozenset}:
                default = {} if field.default_factory is dict else []
            fields.append(_with_default(_checked(field.encode_name, name), schema, default))
        return self._defined(name, info.cls, fields)

    def _model(self, kind: Any) -> Schema:
        name = _record_name(kind)
        if getattr(kind, "__pydantic_root_model__", False):
            return self.of(kind.model_fields["root"].annotation, name)
        if (known := self._known(name, kind)) is not None:
            return known
        from pydantic_core import PydanticUndefined  # noqa: PLC0415 - it is there if a model is

        fields: list[dict[str, Any]] = []
        for attribute, field in kind.model_fields.items():
            written = field.serialization_alias or field.alias or attribute
            schema = self.of(field.annotation, f"{name}_{_plain_name(written)}")
            default = msgspec.NODEFAULT if field.default is PydanticUndefined else field.default
            if field.default_factory in {list, dict, set}:
                default = {} if field.default_factory is dict else []
            fields.append(_with_default(_checked(written, name), schema, default))
        return self._defined(name, kind, fields)

    def _known(self, name: str, what: Any) -> str | None:
        if name not in self._named:
            self._named[name] = what  # which may be in itself
            return None
        other, cls = self._named[name], getattr(what, "cls", what)
        if getattr(other, "cls", other) != cls:
            raise TypeError(f"two types have the name {name}")
        return f"{self._namespace}.{name}" if self._namespace else name

    def _defined(self, name: str, cls: Any, fields: list[dict[str, Any]]) -> Schema:
        record: dict[str, Any] = {"type": "record", "name": name}
        if self._namespace:
            record["namespace"] = self._namespace
        if doc := docstring(typing.get_origin(cls) or cls):
            record["doc"] = doc
        return {**record, "fields": fields}

    def _enum(self, name: str, values: list[Any]) -> Schema:
        name = _plain_name(name)
        if not all(isinstance(value, str) for value in values):
            kinds = {type(value) for value in values}
            if kinds <= {int}:
                return "long"
            raise TypeError(f"the values of {name} are neither all text nor all whole numbers")
        if not all(_NAME.fullmatch(value) for value in values):
            return "string"
        if name in self._named:
            if self._named[name] != values:
                raise TypeError(f"two types have the name {name}")
            return f"{self._namespace}.{name}" if self._namespace else name
        self._named[name] = values
        schema: dict[str, Any] = {"type": "enum", "name": name, "symbols": values}
        return {**schema, "namespace": self._namespace} if self._namespace else schema

    def _union(self, schemas: list[Schema]) -> Schema:
        flat: list[Any] = []
        for schema in schemas:
            flat += [each for each in (schema if isinstance(schema, list) else [schema]) if each not in flat]
        bases = [_base(each) for each in flat]
        if len(set(bases)) != len(bases):
            twice = next(each for each in bases if bases.count(each) > 1)
            raise TypeError(f"a union has several that Avro writes as {twice}, and they cannot be told apart")
        records = [each for each in flat if isinstance(each, dict) and each["type"] == "record"]
        if len(records) > 1 and not all(_is_tagged(record) for record in records):
            raise TypeError("a union of records needs a tag in each, which is a name in Avro")
        return flat[0] if len(flat) == 1 else flat


def _base(schema: Any) -> str:
    """What two branches of a union may not both be."""
    if isinstance(schema, str):
        return schema
    if schema["type"] in {"record", "enum"}:
        return str(schema["name"])
    return str(schema["type"])


def _is_tagged(record: Mapping[str, Any]) -> bool:
    """Whether a field has one value alone."""
    return any(
        isinstance(field["type"], dict)
        and field["type"]["type"] == "enum"
        and len(field["type"]["symbols"]) == 1
        for field in record["fields"]
    )


def _with_default(name: str, schema: Schema, default: Any) -> dict[str, Any]:
    """A field, and its default where JSON can say it: in a union that is the first branch's."""
    field: dict[str, Any] = {"name": name, "type": schema}
    if isinstance(default, enum.Enum):
        default = default.value
    if default is msgspec.NODEFAULT or not (
        default is None or isinstance(default, bool | int | float | str) or default in ([], {})
    ):
        return field
    branches = schema if isinstance(schema, list) else [schema]
    for branch in branches:
        if _fits(default, branch):
            if isinstance(schema, list):
                field["type"] = [branch, *(each for each in schema if each is not branch)]
            return {**field, "default": default}
    return field


def _fits(default: Any, branch: Any) -> bool:
    if isinstance(branch, dict):
        if branch["type"] == "enum":
            return default in branch["symbols"]
        if "logicalType" in branch:
            return False
        branch = branch["type"]
    kinds: dict[str, Any] = {
        "null": type(None), "boolean": bool, "long": int, "double": float, "string": str, "array": list, "map": dict,
    }  # fmt: skip
    return type(default) is kinds.get(branch)


def _values_of(kind: Any) -> list[Any] | None:
    return [each.value for each in kind] if isinstance(kind, type) and issubclass(kind, enum.Enum) else None


def _record_name(kind: Any) -> str:
    arguments = [_record_name(each) for each in typing.get_args(kind)]
    origin = typing.get_origin(kind) or kind
    name = getattr(origin, "__name__", str(origin))
    return "_".join([_plain_name(name), *arguments])


def _plain_name(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
    return plain if _NAME.fullmatch(plain) else f"_{plain}"


def _checked(name: str, record: str) -> str:
    if not _NAME.fullmatch(name):
        raise TypeError(f"the field {name!r} of {record} is no name in Avro")
    return name
