"""The broker in this process keeps every promise that one in a process can."""

from uuid import uuid4

import pytest

from things_kit.testing.conformance import ConformanceSuite, Target
from things_kit.testing.conformance.footprint import FootprintSuite
from things_kit.testing.conformance.stage import Stage


class TestMemory(ConformanceSuite):
    @pytest.fixture
    def target(self) -> Target:
        return Target(
            url=f"memory://{uuid4().hex}",
            shared=False,
            durable=False,
            size_options={"max_message_bytes": "4096"},
        )

    async def test_stopped_consumers_leave_no_memory_behind(self, stage: Stage) -> None:
        pytest.skip("what was handled is retained for groups to come: see TestMemoryThatRetainsNothing")


class TestMemoryThatRetainsNothing(FootprintSuite):
    @pytest.fixture
    def target(self) -> Target:
        return Target(url=f"memory://{uuid4().hex}?retain=0", shared=False, durable=False)
