"""Marks what is known not to hold yet, as `expected.py` lists it."""

import pytest

from tests.conformance.expected import EXPECTED_FAILURES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        where, _, name = item.nodeid.rpartition("::")
        broker = where.rpartition("::")[2]
        for expected in EXPECTED_FAILURES:
            if expected.concerns(broker, name):
                item.add_marker(pytest.mark.xfail(strict=True, reason=expected.reason))
