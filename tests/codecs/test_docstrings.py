"""What a class says of itself, and nothing that Python says of it."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from things_kit.codecs.docstrings import docstring


@dataclass
class Said:
    """Of itself."""

    number: int


@dataclass
class Unsaid(Said):
    more: int


class WrittenWhenAsked:
    """As a dataclass of Python 3.15 has it."""

    def __get__(self, _: object, cls: type) -> str:
        return f"{cls.__name__}(number: int)"


def test_a_class_is_described_by_its_own_docstring_alone() -> None:
    late: Any = type("Late", (), {"__doc__": WrittenWhenAsked()})
    assert docstring(Said) == "Of itself."
    assert [docstring(kind) for kind in (Unsaid, late, Said | None, SimpleNamespace())] == [""] * 4
