"""Drivers on one file."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.brokers.sqlite.given import Open, driver
from things_kit.brokers.sqlite.driver import SQLiteDriver


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
async def connect(file: Path) -> AsyncIterator[Open]:
    """Opens any number of drivers on one file: to SQLite each is a process of its own."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_driver(query: str = "", path: Path = file) -> SQLiteDriver:
            made = driver(path, query)
            stack.push_async_callback(made.close)
            await made.open()
            return made

        yield open_driver
