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


class Environment(EnvSettingsSource):
    """The variables of one section. Lists are separated by commas, or are JSON."""

    def __init__(self, prefix: str, fields: type[BaseModel]) -> None:
        """Read the variables. Raises SourceError."""
        super().__init__(
            cast("type[BaseSettings]", fields),  # of it only the fields are asked for
            case_sensitive=False,
            env_prefix=prefix,
            env_nested_delimiter=NESTED,
        )
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
