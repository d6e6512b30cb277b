"""What environment variables say of one section: `SHOP_PRICE`, `SHOP_DATABASE__POOL`, `SHOP_PASSWORD_FILE`."""

import os
import types
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError

from things_kit.app.config_file import SourceError

FROM_FILE: Final = "_file"
"""A variable whose name ends so names a file that holds the value, as secrets are mounted into containers."""
NESTED: Final = "__"
NULL: Final = "null"
LONG: Final = 6
"""Letters from which on a name may have two wrong ones."""


class Environment(EnvSettingsSource):
    """The variables of one section. Lists are separated by commas, or are JSON."""

    def __init__(self, prefix: str, fields: type[BaseModel]) -> None:
        """Read the variables. Raises SourceError."""
        super().__init__(
            cast("type[BaseSettings]", fields),  # of it only the fields are asked for
            case_sensitive=False,
            env_prefix=prefix,
            env_nested_delimiter=NESTED,
            env_parse_none_str=NULL,
        )
        _refuse_misspelt(prefix, fields)
        self.from_files = self._read_files(fields)
        self.env_vars = {**self.env_vars, **self.from_files}
        try:
            self.values = self()
        except SettingsError as error:
            raise SourceError(f"{str(error).capitalize()}: {error.__cause__}") from error

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """A list from its items between commas, anything else from JSON."""
        text = value.strip()
        if text.startswith(("[", "{")) or not _takes_list(field.annotation if field else None):
            try:
                return super().decode_complex_value(field_name, field, value)
            except ValueError:
                return value  # what is wrong with it, the type says best
        return [item.strip() for item in text.split(",") if item.strip()]

    def name_of(self, path: Sequence[str | int]) -> str | None:
        """The variable that gave what stands at this path; None if none did."""
        values: Any = self.values
        steps: list[str] = []
        for step in path:
            if not isinstance(values, dict):
                break
            if step not in values:
                return None
            steps.append(str(step))
            values = values[step]
        for length in range(len(steps), 0, -1):
            name = f"{self.env_prefix}{NESTED.join(steps[:length])}".lower()
            if name in self.from_files:
                return f"{name}{FROM_FILE}".upper()
            if name in self.env_vars:
                return name.upper()
        return None

    def _read_files(self, fields: type[BaseModel]) -> dict[str, str]:
        known = {name.lower() for name in fields.model_fields}
        found: dict[str, str] = {}
        for variable, path in os.environ.items():
            name = variable.lower()
            if not name.startswith(self.env_prefix) or not name.endswith(FROM_FILE) or not path:
                continue
            whole, target = name.removeprefix(self.env_prefix), name.removesuffix(FROM_FILE)
            if whole in known or target.removeprefix(self.env_prefix).split(NESTED)[0] not in known:
                continue  # a field that is called so, or nothing of ours
            if target in self.env_vars:
                raise SourceError(f"{variable} and {target.upper()} are both set: expected one of them")
            try:
                found[target] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is no text"
                raise SourceError(f"{variable}: the file {path} cannot be read: {reason}") from error
        return found


def _refuse_misspelt(prefix: str, fields: type[BaseModel]) -> None:
    """A variable that is a field but for a letter, or two of six or more, is one. Raises SourceError, without its value."""
    names = [f"{prefix}{name}".lower() for name in _names(fields)]
    for variable, value in os.environ.items():
        name = variable.lower()
        if not name.startswith(prefix) or value.startswith(
            "tcp://"
        ):  # Kubernetes' own, of a service of that name
            continue
        for stem in {name, name.removesuffix(FROM_FILE)} - set(names):
            if stem == name and name.removesuffix(FROM_FILE) in names:
                continue
            meant = next((each for each in names if _is_misspelt(stem, each, len(prefix))), None)
            if meant is not None:
                raise SourceError(
                    f"{variable}: nothing reads this variable; {meant.upper()} is probably meant: rename it, or unset it"
                )


def _names(fields: type[BaseModel], above: str = "") -> list[str]:
    """The fields, and those of fields."""
    found: list[str] = []
    for name, field in fields.model_fields.items():
        found.append(above + name)
        for kind in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += _names(kind, f"{above}{name}{NESTED}")
    return found


def _is_misspelt(name: str, known: str, prefix: int) -> bool:
    most = 2 if len(known) - prefix >= LONG else 1
    return abs(len(name) - len(known)) <= most and _distance(name, known) <= most


def _distance(one: str, other: str) -> int:
    """How many letters to add, take away or change, or neighbours to swap, to make one of the other."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _takes_list(annotation: Any) -> bool:
    origin = typing.get_origin(annotation) or annotation
    if origin in {typing.Union, types.UnionType}:
        return any(map(_takes_list, typing.get_args(annotation)))
    if origin is typing.Annotated:
        return _takes_list(typing.get_args(annotation)[0])
    return (
        isinstance(origin, type)
        and issubclass(origin, Collection)
        and not issubclass(origin, str | bytes | dict)
    )
