"""The file `config.yaml`: its values, and on which line each of them stands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

PLACES: Final = ("config.yaml", "config/config.yaml")
"""Where the file is looked for, below the current folder; the first is taken."""


class SourceError(Exception):
    """The file, or a variable, cannot be read as configuration: a sentence that says where."""


class ConfigFile:
    """What is in the file; nothing where there is none."""

    def __init__(self, path: Path | None = None) -> None:
        """Read the file. Raises SourceError."""
        self.path = path
        self.data: dict[str, Any] = {}
        self._root: yaml.Node | None = None
        if path is not None:
            self._read(path)

    @classmethod
    def find(cls) -> "ConfigFile":
        """The file of the current folder, or of `config` in it. Raises SourceError."""
        return cls(next((path for path in map(Path, PLACES) if path.is_file()), None))

    def line_of(self, path: Sequence[str | int]) -> int | None:
        """The line of what stands at this path, or of the nearest thing above it; None where its section is missing."""
        node, line = self._root, None
        for step in path:
            found = _child(node, step)
            if found is None:
                break
            line, node = found
        return line

    def where(self, path: Sequence[str | int]) -> str:
        """The file, and the line where there is one."""
        line = self.line_of(path)
        return f"{self.path or PLACES[0]}" + (f":{line}" if line is not None else "")

    def _read(self, path: Path) -> None:
        loader = None
        try:
            loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
            self._root = loader.get_single_node()
            _refuse_doubles(self._root, path)
            data = None if self._root is None else loader.construct_document(self._root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            raise SourceError(f"{path}{line}: this is no YAML: {error.problem or error.context}") from None
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{path}: it cannot be read: {error}") from error
        finally:
            if loader is not None:
                loader.dispose()
        if data is None:
            return
        if not isinstance(data, dict):
            raise SourceError(f"{path}:1: expected sections, such as `kafka:`, each with its fields below it")
        for name, section in data.items():
            if section is not None and not isinstance(section, dict) and not str(name).startswith("x-"):
                raise SourceError(
                    f"{self.where_in(path, name)}: {name}: expected a section, with its fields below it"
                )
        self.data = {str(name): section or {} for name, section in data.items()}

    def where_in(self, path: Path, name: Any) -> str:
        """The file and line of a section, while it is being read."""
        return f"{path}:{self.line_of([name])}"


def _child(node: yaml.Node | None, step: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == str(step):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        item = node.value[step]
        return item.start_mark.line + 1, item
    return None


def _refuse_doubles(node: yaml.Node | None, path: Path) -> None:
    """YAML takes the last of two fields of one name; nobody means that."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_doubles(item, path)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            line = key.start_mark.line + 1
            if key.value in lines:
                raise SourceError(f"{path}:{line}: {key.value} stands on line {lines[key.value]} already")
            lines[key.value] = line
        _refuse_doubles(value, path)
