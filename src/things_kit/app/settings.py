"""Typed sections of configuration, from `config.yaml` and the environment."""

import dataclasses
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, TypeAdapter, ValidationError, create_model

from things_kit.app.config_file import ConfigFile, SourceError
from things_kit.app.parts import Provide, caller

if TYPE_CHECKING:
    from things_kit.app.environment import Environment

MISSING: Final = {"missing", "missing_argument"}
"""What pydantic calls it."""
LONGEST_QUOTE: Final = 200
"""Characters of a wrong value that are quoted."""
IGNORED_PREFIX: Final = "x-"
"""Sections whose names begin so are the file's own, such as anchors for others to repeat."""


class SettingsError(Exception):
    """The configuration is not what its sections say; `mistakes` has a sentence for each reason."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(mistakes))


@typing.runtime_checkable
class Overlaid(typing.Protocol):
    """A section's class that says what of the file is void where the environment says something else in its place."""

    @classmethod
    def left_of(cls, file: Mapping[str, Any], environment: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of the file still counts beside these fields of the environment."""


class Section(Provide):
    """A section, provided as an object of its class. Made by `section`."""

    def __init__(self, name: str, kind: type, *, depth: int = 2) -> None:
        self.name = name
        self.kind = kind

        def read(settings: Settings) -> Any:
            return settings[name]

        read.__qualname__ = f"the section {name!r}"
        super().__init__(read, as_=kind, timeout=None, on_demand=False, place=caller(depth + 1))


def section(name: str, kind: type) -> Section:
    """Let a class be asked for that holds the section `name` of the configuration.

    The class is a pydantic model or a dataclass. A field `price` of the section `shop` is overlaid by the environment
    variable `SHOP_PRICE`, or by what the file says that `SHOP_PRICE_FILE` names. Lists are separated by commas there;
    a field of a field is `SHOP_DATABASE__POOL`.
    """
    return Section(name, kind)


class Settings(Mapping[str, Any]):
    """All sections of an app, checked."""

    def __init__(self, kinds: Mapping[str, type], *, known: Iterable[str] = ()) -> None:
        """Read the sections. `known` are names of sections that may be there, though nothing here reads them.

        Raises:
            SettingsError: With all mistakes at once; each names the file and line or the variable, the field, and
                what was expected.
        """
        self.kinds = dict(kinds)
        self._values: dict[str, Any] = {}
        try:
            self.file = ConfigFile.find()
        except SourceError as error:
            raise SettingsError([str(error)]) from error
        mistakes = self._unread(known)
        for name, kind in self.kinds.items():
            try:
                self._values[name] = self._section(name, kind)
            except SettingsError as error:
                mistakes += error.mistakes
        if mistakes:
            raise SettingsError(mistakes)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> typing.Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _unread(self, known: Iterable[str]) -> list[str]:
        names = sorted({*self.kinds, *known})
        return [
            f"{self.file.where([name])}: {name}: nothing reads this section; {_meant(name, names)}"
            for name in self.file.data
            if name not in names and not name.startswith(IGNORED_PREFIX)
        ]

    def _section(self, name: str, kind: type) -> Any:
        try:
            environment = _environment(name, kind)
        except SourceError as error:
            raise SettingsError([str(error)]) from error
        below, above = self.file.data.get(name, {}), environment.values if environment else {}
        if issubclass(kind, Overlaid) and isinstance(below, Mapping):
            below = kind.left_of(below, above)
        data = _overlaid(below, above)
        try:
            return TypeAdapter(kind).validate_python(data, extra="forbid")
        except ValidationError as error:
            said: dict[str, list[str]] = {}
            given: dict[str, str] = {}
            for details in error.errors(include_url=False, include_context=False):
                path = _without_tags(details, data)
                where, what = self._mistake(name, environment, kind, path, details)
                said.setdefault(where, []).append(what)
                given[where] = _given(kind, path, details)
            # The types of a union complain one by one
            mistakes = [
                f"{where}: {'; or '.join(dict.fromkeys(whats))}{given[where]}"
                for where, whats in said.items()
            ]
            raise SettingsError(mistakes) from None  # the cause would show the values, and secrets among them

    def _mistake(
        self,
        section: str,
        environment: "Environment | None",
        kind: type,
        path: Sequence[str | int],
        details: Any,
    ) -> tuple[str, str]:
        """Where it is, with its field, and what is wrong."""
        variable = environment.name_of(path) if environment else None
        where = variable if variable is not None else self.file.where([section, *path])
        field = ".".join(map(str, [section, *path]))
        if details["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            return f"{where}: {field}", f"unknown field; {_meant(str(path[-1]), _names_at(kind, path[:-1]))}"
        if details["type"] in MISSING:
            return f"{where}: {field}", "it is missing, and has no default"
        said = details["msg"].removeprefix("Value error, ").replace("Input should be", "expected", 1)
        return f"{where}: {field}", said


def _given(kind: Any, path: Sequence[str | int], details: Any) -> str:
    """The wrong value, unless it is long, or may be secret by its name, its type or what it looks like."""
    from things_kit.app.shown import SECRET  # noqa: PLC0415 - for mistakes only

    value = details["input"]
    if details["type"] in {*MISSING, "extra_forbidden", "unexpected_keyword_argument"}:
        return ""
    plain = value is None or isinstance(value, str | int | float | bool)
    if not plain or len(str(value)) > LONGEST_QUOTE or any(SECRET.search(str(step)) for step in path):
        return ""
    if "@" in str(value) or "Secret" in str(_annotation_at(kind, path)):
        return ""
    return f"; it is {value!r}"


def _annotation_at(kind: Any, path: Sequence[str | int]) -> Any:
    """The type of the field at a path, or of the last that is known on the way."""
    for step in path:
        try:
            kind = fields_of(kind).model_fields[str(step)].annotation
        except (TypeError, KeyError):
            break
        inner = [arg for arg in typing.get_args(kind) if isinstance(arg, type) and issubclass(arg, BaseModel)]
        kind = inner[0] if inner else kind
    return kind


def _without_tags(details: Any, data: Any) -> tuple[str | int, ...]:
    """The path of a mistake, without what only says which type of a union it concerns: nobody has written that."""
    path = details["loc"]
    found: list[str | int] = []
    for number, step in enumerate(path, 1):
        if isinstance(data, Mapping):
            if step not in data and not (number == len(path) and details["type"] in MISSING):
                continue
            data = data.get(step)
        elif isinstance(data, list | tuple) and isinstance(step, int):
            data = data[step] if step < len(data) else None
        else:
            continue
        found.append(step)
    return tuple(found)


def _environment(name: str, kind: type) -> "Environment | None":
    """The variables of a section; None where there are none."""
    prefix = env_prefix(name)
    if not any(variable.lower().startswith(prefix) for variable in os.environ):
        return None
    # Imported only now: it takes a third of the time in which an app starts
    from things_kit.app.environment import Environment  # noqa: PLC0415

    return Environment(prefix, fields_of(kind))


def env_prefix(section: str) -> str:
    """How the names of a section's variables begin, in lower case."""
    return f"{section}_".lower().replace("-", "_")


def given(kinds: Mapping[str, type]) -> dict[str, type]:
    """Those sections of which the file or the environment says anything. Raises SettingsError."""
    try:
        file = ConfigFile.find()
        return {
            name: kind
            for name, kind in kinds.items()
            if name in file.data or ((said := _environment(name, kind)) and said.values)
        }
    except SourceError as error:
        raise SettingsError([str(error)]) from error


def fields_of(kind: Any) -> type[BaseModel]:
    """A model with the fields of a section's class."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        fields: dict[str, Any] = {field.name: (hints[field.name], None) for field in dataclasses.fields(kind)}
        return create_model(getattr(kind, "__name__", "section"), **fields)
    raise TypeError(f"a section's class is a pydantic model or a dataclass; {kind!r} is neither")


def _overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for name, value in above.items():
        under = result.get(name)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        result[name] = _overlaid(under, value) if both else value  # type: ignore[arg-type]
    return result


def _names_at(kind: Any, path: Sequence[str | int]) -> list[str]:
    """The fields that there are at a path; none where that is no section of fields."""
    for step in path:
        try:
            annotation = fields_of(kind).model_fields[str(step)].annotation
        except (TypeError, KeyError):
            return []
        inner = [
            arg for arg in typing.get_args(annotation) if isinstance(arg, type) and arg is not type(None)
        ]
        kind = inner[0] if inner else annotation
    try:
        return sorted(fields_of(kind).model_fields)
    except TypeError:
        return []


def _meant(name: str, known: Sequence[str]) -> str:
    import difflib  # noqa: PLC0415 - for mistakes only

    close = difflib.get_close_matches(name, known, n=1)
    said = f"did you mean {close[0]!r}? " if close else ""
    return f"{said}known are {', '.join(known)}" if known else f"{said}none is known here"
