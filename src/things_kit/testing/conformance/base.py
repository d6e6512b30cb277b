"""What the groups of the suite have in common."""

from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.target import Target

random_plans: Final = settings(
    max_examples=20,
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,  # each example has a topic of its own on the test's stage
        HealthCheck.too_slow,
        HealthCheck.differing_executors,  # one test serves the classes of several brokers
    ],
)
"""How tests with random plans run: a moderate number of examples, each of many messages."""


class Suite:
    """Gives each test a `stage` on the class's fixture `target`."""

    pytestmark = pytest.mark.asyncio

    @pytest_asyncio.fixture
    async def stage(self, target: Target) -> AsyncIterator[Stage]:
        """The target, opened, with names of the test's own; closed and swept after the test."""
        async with Stage(target) as stage:
            yield stage
