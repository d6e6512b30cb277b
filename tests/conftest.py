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


@pytest.fixture
def mypy_cache(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy knows of this package and of those that it uses, which takes it longer than what a test shows it."""
    cache = getattr(pytestconfig, "cache", None)  # there is none where its plugin is left out
    return tmp_path_factory.getbasetemp() if cache is None else cache.mkdir("mypy")
