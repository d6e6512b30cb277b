"""What all tests share."""

import gc
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

gc.disable()


def pytest_collection_finish() -> None:
    """What thousands of collected tests are made of stays, and need not be gone through by each collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Most tests wait for servers, and simulations keep a processor busy: these are put among the others, not all at the end."""
    scopes: dict[str, list[pytest.Item]] = {}
    for item in items:
        scopes.setdefault(item.nodeid.rpartition("::")[0], []).append(item)
    busy = [scope for scope in scopes if "/simulation/" in scope]
    order = [scope for scope in scopes if scope not in busy]
    apart = len(order) // (len(busy) + 1)
    for number, scope in enumerate(busy, 1):
        order.insert(number * (apart + 1) - 1, scope)
    items[:] = [item for scope in order for item in scopes[scope]]


@pytest.fixture
def mypy_cache(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy knows of this package and of those that it uses, which takes it longer than what a test shows it."""
    cache = getattr(pytestconfig, "cache", None)  # there is none where its plugin is left out
    return tmp_path_factory.getbasetemp() if cache is None else cache.mkdir("mypy")
