"""The JSON schema of a payload's type: complete, in draft 7, with references to components."""

import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import inspect as shapes

from things_kit.codecs.docstrings import docstring
from things_kit.codecs.models import has_pydantic, is_model
from things_kit.messaging.kinds import unwrapped

Schema: TypeAlias = dict[str, Any]

COMPONENTS: Final = "#/components/schemas/"

_SIMPLE: Final[dict[type, Schema]] = {
    shapes.AnyType: {},
    shapes.RawType: {},
    shapes.NoneType: {"type": "null"},
    shapes.BoolType: {"type": "boolean"},
    shapes.DateType: {"type": "string", "format": "date"},
    shapes.TimeDeltaType: {"type": "string", "format": "duration"},
    shapes.UUIDType: {"type": "string", "format": "uuid"},
    shapes.DecimalType: {"type": "string", "format": "decimal"},
}
_BOUNDS: Final = {
    "ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum", "multiple_of": "multipleOf",
    "min_length": "minLength", "max_length": "maxLength", "pattern": "pattern",
}  # fmt: skip
_SIZES: Final = {"min_length": "minItems", "max_length": "maxItems"}
_ENTRIES: Final = {"min_length": "minProperties", "max_length": "maxProperties"}
_PLAIN: Final[dict[type, str]] = {
    shapes.IntType: "integer",
    shapes.FloatType: "number",
    shapes.StrType: "string",
}
_TIMES: Final = {shapes.DateTimeType: "date-time", shapes.TimeType: "time"}
_BYTES: Final = (shapes.BytesType, shapes.ByteArrayType, shapes.MemoryViewType)
INT_KEY: Final = "^-?[0-9]+$"
FLOAT_KEY: Final = "^-?[0-9.eE+-]+$"
"""How a number is written that is the name of a field."""

_KEYS: Final = {shapes.IntType: INT_KEY, shapes.FloatType: FLOAT_KEY}
ZONED: Final = "([Zz]|[+-][0-9]{2}:?[0-9]{2})$"
"""How a time with a zone ends."""
_LISTS: Final = (shapes.ListType, shapes.VarTupleType, shapes.CollectionType)
_SETS: Final = (shapes.SetType, shapes.FrozenSetType)
_RECORDS: Final = (shapes.StructType, shapes.DataclassType, shapes.TypedDictType)
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def safe_name(name: str) -> str:
    """A name that a reference can have as it is."""
    return _UNSAFE.sub("_", name).strip("_") or "_"


class Schemas:
    """The schemas of many types, each named one once.

    Attributes:
        components: The named ones.
    """

    def __init__(self, prefix: str = COMPONENTS, elsewhere: Mapping[Any, str] = {}) -> None:
        """Begin with none.

        Args:
            prefix: Where references find the named ones.
            elsewhere: Types that are described elsewhere, and where references find those.
        """
        self.components: dict[str, Schema] = {}
        self._prefix = prefix
        self._elsewhere = elsewhere
        self._names: dict[Any, str] = {}

    def of(self, kind: Any) -> Schema:
        """The schema of a type. Raises TypeError where it cannot be described."""
        plain = unwrapped(kind)
        if kind is bytes:
            return {"type": "string", "contentEncoding": "base64"}
        if (fields := getattr(getattr(plain, "DESCRIPTOR", None), "fields", None)) is not None:
            return self._generated(plain, fields)
        if has_pydantic(kind) and not _is_record(plain):
            return self._pydantic(kind)
        return self._shape(shapes.type_info(kind))

    # --- msgspec's

    def _shape(self, info: shapes.Type) -> Schema:
        if isinstance(info, shapes.Metadata):
            return {**self._shape(info.type), **(info.extra_json_schema or {})}
        if (simple := _SIMPLE.get(type(info))) is not None:
            return dict(simple)
        if isinstance(info, (*_PLAIN, *_BYTES, *_TIMES)):
            return _scalar(info)
        if isinstance(info, shapes.EnumType):
            return self._named(
                info.cls, lambda: _described({"enum": [each.value for each in info.cls]}, info.cls)
            )
        if isinstance(info, shapes.LiteralType):
            return {"const": info.values[0]} if len(info.values) == 1 else {"enum": list(info.values)}
        return self._composed(info)

    def _composed(self, info: shapes.Type) -> Schema:
        if isinstance(info, shapes.UnionType):
            return {"anyOf": [self._shape(each) for each in info.types]}
        if isinstance(info, shapes.DictType):
            return self._mapping(info)
        if isinstance(info, (*_LISTS, *_SETS, shapes.TupleType, shapes.NamedTupleType)):
            return self._array(info)
        if isinstance(info, _RECORDS):
            return self._named(info.cls, lambda: self._record(info))
        if isinstance(info, shapes.CustomType) and has_pydantic(info.cls):
            return self._pydantic(info.cls)
        raise TypeError(f"{type(info).__name__.removesuffix('Type')} cannot be described")

    def _mapping(self, info: shapes.DictType) -> Schema:
        found = {
            "type": "object",
            "additionalProperties": self._shape(info.value_type),
            **_bounds(info, _ENTRIES),
        }
        keys = self._key(info.key_type)
        return found if keys in ({}, {"type": "string"}) else {**found, "propertyNames": keys}

    def _key(self, info: shapes.Type) -> Schema:
        """The schema of a type as the name of a field, which is text."""
        if isinstance(info, shapes.UnionType):
            return {"anyOf": [self._key(each) for each in info.types]}
        if isinstance(info, shapes.EnumType | shapes.LiteralType):
            values = [each.value for each in info.cls] if isinstance(info, shapes.EnumType) else info.values
            return {"enum": [str(value) for value in values]}
        if (pattern := _KEYS.get(type(info))) is None:
            return self._shape(info)
        bounds = _bounds(info, _BOUNDS)
        return {"type": "string", "pattern": pattern, **({"contentSchema": bounds} if bounds else {})}

    def _array(self, info: Any) -> Schema:
        if isinstance(info, shapes.TupleType):
            return _tuple([self._shape(each) for each in info.item_types])
        if isinstance(info, shapes.NamedTupleType):
            return _tuple([self._shape(each.type) for each in info.fields])
        unique = {"uniqueItems": True} if isinstance(info, _SETS) else {}
        return {"type": "array", "items": self._shape(info.item_type), **unique, **_bounds(info, _SIZES)}

    def _record(self, info: Any) -> Schema:
        if getattr(info, "array_like", False):
            tag = [{"const": info.tag}] if info.tag is not None else []
            return _described(_tuple([*tag, *(self._shape(each.type) for each in info.fields)]), info.cls)
        properties: dict[str, Schema] = {}
        required: list[str] = []
        if (tag_field := getattr(info, "tag_field", None)) is not None:
            properties[tag_field] = {"const": info.tag}
            required.append(tag_field)
        for field in info.fields:
            schema = self._shape(field.type)
            if field.required:
                required.append(field.encode_name)
            elif field.default is not msgspec.NODEFAULT:
                schema = _defaulted(schema, field.default)
            properties[field.encode_name] = schema
        record: Schema = {"type": "object", "properties": properties}
        if required:
            record["required"] = required
        if getattr(info, "forbid_unknown_fields", False):
            record["additionalProperties"] = False
        return _described(record, info.cls)

    def _named(self, cls: Any, make: Any) -> Schema:
        if cls in self._elsewhere:
            return {"$ref": self._elsewhere[cls]}
        if (name := self._names.get(cls)) is None:
            name = self._names[cls] = self._free(_type_name(cls))
            self.components[name] = {}  # it may be in itself
            self.components[name] = make()
        return {"$ref": self._prefix + name}

    def _free(self, name: str) -> str:
        free, number = name, 2
        while free in self.components:
            free, number = f"{name}_{number}", number + 1
        return free

    # --- pydantic's, and Protobuf's

    def _pydantic(self, kind: Any) -> Schema:
        from pydantic.errors import PydanticUserError  # noqa: PLC0415 - it is there if a type of its is

        try:
            whole, definitions = _of_pydantic(kind)
            away = {
                name: place
                for each, place in self._elsewhere.items()
                if (name := getattr(each, "__name__", "")) in definitions
                and has_pydantic(each)
                and _of_pydantic(each)[1].get(name) == definitions[name]
            }
        except PydanticUserError as error:
            raise TypeError(str(error).splitlines()[0]) from error
        here = {name: definitions[name] for name in _reached(whole, definitions, away)}
        names: dict[str, str] = {}
        for name, schema in here.items():
            rewritten = rewrite(schema, {**{each: self._prefix + safe_name(each) for each in here}, **away})
            known = self.components.get(safe_name(name))
            names[name] = (
                safe_name(name) if known is None or known == rewritten else self._free(safe_name(name))
            )
        references = {**{name: self._prefix + free for name, free in names.items()}, **away}
        for name, schema in here.items():
            self.components[names[name]] = rewrite(schema, references)
        found: Schema = rewrite(whole, references)
        return found

    def _generated(self, cls: Any, fields: Iterable[Any]) -> Schema:
        def record() -> Schema:
            return {"type": "object", "properties": {field.name: self._field(field) for field in fields}}

        return self._named(cls, record)

    def _field(self, field: Any) -> Schema:
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            return {"type": "object", "additionalProperties": self._field(message.fields_by_name["value"])}
        if message is not None:
            from google.protobuf.message_factory import GetMessageClass  # noqa: PLC0415 - it is there if a type of its is

            one = self._generated(GetMessageClass(message), message.fields)
        elif field.enum_type is not None:
            one = {"enum": [each.name for each in field.enum_type.values]}
        else:
            kinds = {9: "string", 12: "string", 8: "boolean", 1: "number", 2: "number"}
            one = {"type": kinds.get(field.type, "integer")}
            one |= {"contentEncoding": "base64"} if field.type == 12 else {}
        repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3
        return {"type": "array", "items": one} if repeated else one


def _of_pydantic(kind: Any) -> tuple[Schema, dict[str, Schema]]:
    """Pydantic's schema of a type, and the definitions that it names."""
    from pydantic import TypeAdapter  # noqa: PLC0415 - as above

    from things_kit.codecs.pydantic_schema import Complete  # noqa: PLC0415 - as above

    whole = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}", schema_generator=Complete)
    definitions = whole.pop("$defs", {})
    if is_model(kind) and "$ref" not in whole:
        definitions[kind.__name__], whole = whole, {"$ref": f"#/$defs/{kind.__name__}"}
    return whole, definitions


def _reached(schema: Any, definitions: Mapping[str, Schema], away: Mapping[str, str]) -> list[str]:
    """The definitions that a schema needs, without those that are elsewhere and what they alone need."""
    found: dict[str, None] = {}
    waiting = [schema]
    while waiting:
        for reference in references_in(waiting.pop()):
            name = reference.rpartition("/")[2]
            if name in definitions and name not in found and name not in away:
                found[name] = None
                waiting.append(definitions[name])
    return [name for name in definitions if name in found]


def references_in(found: Any) -> Iterator[str]:
    """All references of a schema."""
    if isinstance(found, dict):
        if isinstance(found.get("$ref"), str):
            yield found["$ref"]
        found = list(found.values())
    if isinstance(found, list):
        for each in found:
            yield from references_in(each)


def rewrite(schema: Any, references: dict[str, str]) -> Any:
    """A schema of draft 2020-12 in draft 7, its references to other places."""
    if isinstance(schema, list):
        return [rewrite(each, references) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found: Schema = {}
    for name, each in schema.items():
        if name == "$ref" and isinstance(each, str):
            found[name] = references.get(each.rpartition("/")[2], each)
        elif name == "prefixItems":
            found["items"] = rewrite(each, references)
        elif name == "discriminator":
            continue  # an object, which AsyncAPI refuses; the constants tell as well
        elif name in {"properties", "patternProperties"} and isinstance(each, dict):
            found[name] = {key: rewrite(value, references) for key, value in each.items()}
        elif name in {"default", "const", "enum", "examples"}:
            found[name] = each
        else:
            found[name] = rewrite(each, references)
    return found


def _is_record(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, msgspec.Struct)


def _type_name(cls: Any) -> str:
    arguments = [_type_name(each) for each in typing.get_args(cls)]
    origin = typing.get_origin(cls) or cls
    return safe_name("_".join([getattr(origin, "__name__", str(origin)), *arguments]))


def _scalar(info: Any) -> Schema:
    """Numbers, text, and bytes, which JSON has in base64, and times: of these a pattern says what a format does not."""
    if (kind := _PLAIN.get(type(info))) is not None:
        return {"type": kind, **_bounds(info, _BOUNDS)}
    if (name := _TIMES.get(type(info))) is not None:
        patterns: dict[bool | None, Schema] = {
            True: {"pattern": ZONED},
            False: {"not": {"pattern": ZONED}},
            None: {},
        }
        return {"type": "string", "format": name, **patterns[info.tz]}
    found: Schema = {"type": "string", "contentEncoding": "base64"}
    least, most = info.min_length or 0, info.max_length
    if least or most is not None:
        sizes = f"{_digits(least)},{'' if most is None else _digits(most)}"
        found["pattern"] = f"^[A-Za-z0-9+/]{{{sizes}}}={{0,2}}$"
    return found


def _digits(size: int) -> int:
    """How many digits of base64 so many bytes have, which no other number has."""
    return -(-4 * size // 3)


def _bounds(info: Any, names: dict[str, str]) -> Schema:
    found = {ours: getattr(info, theirs, None) for theirs, ours in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def _tuple(items: list[Schema]) -> Schema:
    return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}


def _described(schema: Schema, cls: Any) -> Schema:
    doc = docstring(typing.get_origin(cls) or cls)
    title: Schema = {"title": _type_name(cls)}
    if doc and doc != "An enumeration.":
        title["description"] = doc
    return {**title, **schema}


def _defaulted(schema: Schema, default: Any) -> Schema:
    try:
        plain = msgspec.to_builtins(default)
    except TypeError:
        return schema
    # Draft 7 takes no notice of what is beside a reference
    return {"allOf": [schema], "default": plain} if "$ref" in schema else {**schema, "default": plain}
