"""What the groups of the suite have in common."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.target import Target


class Suite:
    """Gives each test a `stage` on the class's fixture `target`."""

    pytestmark = pytest.mark.asyncio

    @pytest_asyncio.fixture
    async def stage(self, target: Target) -> AsyncIterator[Stage]:
        """The target, opened, with names of the test's own; closed and swept after the test."""
        async with Stage(target) as stage:
            yield stage
