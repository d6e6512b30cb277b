"""Registries: the one in memory, and one over HTTP."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.codecs.given import Server
from things_kit.codecs import MemoryRegistry, Registry


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(params=["memory", "http"])
def schemas(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "memory":
        yield MemoryRegistry()
        return
    made = Server()
    yield Registry(made.url)
    made.close()
