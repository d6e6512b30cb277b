"""The embedded brokers keep every promise on uvloop too."""

import asyncio

import uvloop
from tests.conformance.test_memory import TestMemory
from tests.conformance.test_sqlite import TestSQLite

__all__ = ["TestMemory", "TestSQLite"]


async def test_it_is_uvloop_that_these_run_on() -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
