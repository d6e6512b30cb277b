"""The page of promises and the tests that prove them say the same."""

import pkgutil
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import FunctionType

from things_kit.testing import conformance
from things_kit.testing.conformance.base import Suite

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"


def of_suites() -> Iterator[tuple[str, FunctionType]]:
    """All of the suites, also of those that need a server of their own."""
    for found in pkgutil.iter_modules(conformance.__path__, f"{conformance.__name__}."):
        for kind in vars(import_module(found.name)).values():
            if isinstance(kind, type) and issubclass(kind, Suite) and kind.__module__ == found.name:
                yield from (item for item in vars(kind).items() if item[0].startswith("test_"))


def lines_of(test: FunctionType) -> list[int]:
    begin = re.match(r"Lines? ([\d, and]+):", test.__doc__ or "")
    return [] if begin is None else [int(number) for number in re.findall(r"\d+", begin[1])]


def listed() -> Mapping[int, set[str]]:
    """Each line of the page, and the tests below it."""
    return {
        int(number): set(re.findall(r"^    \* `(test_\w+)`$", below, re.MULTILINE))
        for number, below in re.findall(
            r"^\* \*\*(\d+)\*\* .*\n((?:    .*\n)*)", PAGE.read_text(), re.MULTILINE
        )
    }


def test_every_test_says_which_promise_it_proves() -> None:
    assert [name for name, test in of_suites() if not lines_of(test)] == []


def test_the_page_of_promises_names_the_tests_of_each() -> None:
    proven = defaultdict(set)
    for name, test in of_suites():
        for line in lines_of(test):
            proven[line].add(name)
    assert listed() == {line: proven[line] for line in range(1, max(proven) + 1)}
