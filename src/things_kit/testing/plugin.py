"""The pytest plugin: fixtures that need no import, and readable assertions in the conformance suite.

It loads with every pytest of an environment that has this package, so it imports nothing heavy, and does not fail
where pytest-asyncio is missing: only a test that asks for one of its fixtures does.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from things_kit.engine.broker import Broker

try:
    import pytest_asyncio
except ModuleNotFoundError:

    @pytest.fixture
    def memory_broker() -> None:
        """An open broker in memory; it cannot be had without pytest-asyncio."""
        pytest.fail(
            'the fixture memory_broker needs pytest-asyncio: pip install "things-kit[testing]"', pytrace=False
        )

else:

    @pytest_asyncio.fixture(name="memory_broker")
    async def _memory_broker() -> "AsyncIterator[Broker]":
        """An open broker in memory, the test's own; it is closed after the test, with its consumers and producers."""
        from things_kit.brokers.connect import connect  # noqa: PLC0415 - every pytest run would pay for it

        async with connect("memory://") as broker:
            yield broker


pytest.register_assert_rewrite("things_kit.testing.conformance")
